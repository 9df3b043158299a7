// Packed records as a source of rows for batches.
#pragma once

#include <pybind11/numpy.h>

#include <string>
#include <utility>

#include "arrays.hpp"
#include "packed.hpp"
#include "rows.hpp"

namespace scdd {

// Keeps the arrays alive that it reads from.
class PackedSource {
 public:
  int64_t n_rows, n_vars;

  PackedSource(py::array bytes, py::array offsets, int64_t vars, const std::string& simd)
      : n_rows(offsets.size() - 1), n_vars(vars), bytes_(std::move(bytes)), offsets_(std::move(offsets)),
        packed_{vector_of<uint8_t>(bytes_, "bytes"), bytes_.size(), vector_of<int64_t>(offsets_, "offsets"), n_rows, vars,
                packed_kernels(simd.c_str())} {
    if (!packed_.kernels) throw py::value_error("simd=" + simd + " is not to be had on this machine; use auto");
    if (n_rows < 0) throw py::value_error("offsets is empty, and must have one value more than there are rows");
    if (vars < 0 || vars > INT32_MAX) throw py::value_error("n_vars is " + std::to_string(vars) + ", and must lie in 0..2147483647");
  }

  int64_t size(int64_t row) const { return packed_.size(row); }
  void hint(int64_t row) const { packed_.prefetch_header(row); }
  void touch(int64_t row) const { packed_.touch(row); }
  double total(int64_t row) const { return packed_.total(row); }

  template <class F>
  auto view(int64_t row, int64_t next, RowScratch& scratch, const F& f) const {
    packed_.prefetch(next);
    const auto n = static_cast<size_t>(packed_.size(row));
    float* values = scratch.values.reserve_of<float>(n + kSlack);
    int32_t* genes = scratch.genes.reserve_of<int32_t>(n + kSlack);
    packed_.decode(row, values, genes, static_cast<int64_t>(n));
    return f(static_cast<const float*>(values), static_cast<const int32_t*>(genes), static_cast<int64_t>(n));
  }

  // Straight to where the row belongs; `room` is what size(row) was.
  int64_t decode_into(int64_t row, int64_t next, int64_t room, float* values, int32_t* genes) const {
    packed_.prefetch(next);
    packed_.decode(row, values, genes, room);
    return room;
  }

  bool stream(int64_t row, int64_t next, int64_t room, const RowPlace& place, Buffer& scratch, double& total) const {
    return packed_.stream(row, next, room, place, scratch, total);
  }

 private:
  static constexpr size_t kSlack = 64;
  py::array bytes_, offsets_;
  PackedRows packed_;
};

}  // namespace scdd
