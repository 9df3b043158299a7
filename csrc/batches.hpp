// From a source of rows to NumPy batches: the arguments are checked here once, whatever the rows come from.
#pragma once

#include <optional>
#include <string>
#include <tuple>

#include "arrays.hpp"
#include "gather_csr.hpp"
#include "gather_dense.hpp"
#include "token_batch.hpp"

namespace scdd {

// `out` as floats, halves or, where `bfloat16`, the bits of bfloat16 (uint16; NumPy has no name for them).
template <class Visit>
void visit_output(py::array& out, bool bfloat16, const Visit& visit) {
  require_layout(out, "out", 2);
  if (!out.writeable()) throw py::value_error("out is read-only, and is to be written");
  if (bfloat16) {
    require_dtype<uint16_t>(out, "out");
    return visit(static_cast<Brain*>(out.mutable_data()));
  }
  if (out.dtype().kind() == 'f' && out.itemsize() == 2 && out.dtype().attr("isnative").cast<bool>()) return visit(static_cast<Half*>(out.mutable_data()));
  require_dtype<float>(out, "out");
  visit(static_cast<float*>(out.mutable_data()));
}

// Returns the totals, given or computed.
template <class Rows>
py::array dense_batch(const Rows& source, const py::array& rows, const py::array& column_of_gene, py::array out,
                      const std::optional<py::array>& totals, double target_sum, bool log1p,
                      const std::optional<py::array>& mean, const std::optional<py::array>& inverse_std, float clip,
                      bool bfloat16, int64_t threads) {
  const int64_t* row_ids = vector_of<int64_t>(rows, "rows");
  const int32_t* columns = vector_of<int32_t>(column_of_gene, "column_of_gene", source.n_vars);
  require_layout(out, "out", 2);
  if (out.shape(0) != rows.size()) {
    throw py::value_error("out has " + std::to_string(out.shape(0)) + " rows, and must have " +
                          std::to_string(rows.size()));
  }
  const int64_t n_columns = out.shape(1);
  require_threads(threads);
  if (!(target_sum >= 0)) throw py::value_error("target_sum is " + std::to_string(target_sum) + ", and must be 0 or more");
  if (!(clip >= 0)) throw py::value_error("clip is " + std::to_string(clip) + ", and must be 0 or more");
  check_columns(columns, column_of_gene.size(), n_columns);
  const DenseTransform transform{target_sum, log1p, optional_vector_of<float>(mean, "mean", n_columns),
                                 optional_vector_of<float>(inverse_std, "inverse_std", n_columns), clip};
  const bool has_totals = totals.has_value();
  if (has_totals) vector_of<double>(*totals, "totals", rows.size());
  py::array used = has_totals ? *totals : py::array(py::array_t<double>(rows.size()));
  // Given totals are only read, even where the array is read-only.
  auto* used_totals = static_cast<double*>(const_cast<void*>(used.data()));
  visit_output(out, bfloat16, [&](auto* values) {
    const py::gil_scoped_release unlocked;
    gather_dense(source, row_ids, rows.size(), columns, n_columns, transform, has_totals, used_totals, values, threads);
  });
  return used;
}

// The caller's buffer where it is large enough, else a new one: fresh memory costs a page fault for every 4 KiB.
template <class T>
py::array room_for(const std::optional<py::array>& buffer, const char* name, int64_t size) {
  if (buffer) {
    py::array given = *buffer;
    output_of<T>(given, name, given.size());
    if (given.size() >= size) return given;
  }
  return py::array_t<T>(size);
}

// Returns (data, indices, indptr, totals).
template <class Rows>
py::tuple csr_batch(const Rows& source, const py::array& rows, const std::optional<py::array>& column_of_gene,
                    double target_sum, bool log1p, const std::optional<py::array>& data_buffer,
                    const std::optional<py::array>& indices_buffer, int64_t threads) {
  const int64_t* row_ids = vector_of<int64_t>(rows, "rows");
  require_threads(threads);
  if (!(target_sum >= 0)) throw py::value_error("target_sum is " + std::to_string(target_sum) + ", and must be 0 or more");
  const int32_t* columns = optional_vector_of<int32_t>(column_of_gene, "column_of_gene", source.n_vars);
  if (columns) check_columns(columns, source.n_vars, INT32_MAX);
  const CsrGather<Rows> gather{source, row_ids, rows.size(), columns, {target_sum, log1p}, threads};
  py::array_t<int64_t> indptr(rows.size() + 1);
  py::array_t<double> totals(rows.size());
  int64_t* pointers = indptr.mutable_data();
  double* sums = totals.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    gather.count(pointers);
  }
  const int64_t room = pointers[rows.size()];
  py::array data = room_for<float>(data_buffer, "data_buffer", room);
  py::array indices = room_for<int32_t>(indices_buffer, "indices_buffer", room);
  auto* values = static_cast<float*>(data.mutable_data());
  auto* genes = static_cast<int32_t*>(indices.mutable_data());
  int64_t size = 0;
  {
    const py::gil_scoped_release unlocked;
    size = gather.fill(pointers, values, genes, sums);
  }
  const py::slice kept(0, size, 1);
  return py::make_tuple(data[kept], indices[kept], indptr, totals);
}

// These and tokens as methods of a class that is a source of rows.
template <class Rows, class Class>
void bind_batches(Class& bound) {
  bound.def("gather_dense", &dense_batch<Rows>, "As the function gather_dense, of these rows.", py::arg("rows").noconvert(),
            py::arg("column_of_gene").noconvert(), py::arg("out").noconvert(),
            py::arg("totals").noconvert() = py::none(), py::arg("target_sum") = 0.0, py::arg("log1p") = false,
            py::arg("mean").noconvert() = py::none(), py::arg("inverse_std").noconvert() = py::none(),
            py::arg("clip") = 0.0f, py::arg("bfloat16") = false, py::arg("threads") = 1);
  bound.def("gather_csr", &csr_batch<Rows>, "As the function gather_csr, of these rows.", py::arg("rows").noconvert(),
            py::arg("column_of_gene").noconvert() = py::none(), py::arg("target_sum") = 0.0, py::arg("log1p") = false,
            py::arg("data_buffer").noconvert() = py::none(), py::arg("indices_buffer").noconvert() = py::none(),
            py::arg("threads") = 1);
  bound.def("gather_tokens", &token_batch<Rows>, "As the function gather_tokens, of these rows.",
            py::arg("rows").noconvert(), py::arg("token_of_gene").noconvert(),
            py::arg("gene_scale").noconvert() = py::none(), py::arg("max_genes") = 2046, py::arg("target_sum") = 1e4,
            py::arg("log1p") = true, py::arg("logged") = false, py::arg("detected").noconvert() = py::none(),
            py::arg("max_tokens") = static_cast<int64_t>(INT32_MAX), py::arg("threads") = 1);
}

}  // namespace scdd
