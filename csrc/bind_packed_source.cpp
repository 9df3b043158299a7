#include <algorithm>
#include <string>

#include "batches.hpp"
#include "packed_source.hpp"
#include "widen.hpp"

namespace scdd {

namespace {

// What rows of a window and in memory go through, for tests: each path, at each place within a line.
template <class From, class To, class Widen>
py::tuple widened(const py::array& from, int64_t lead, const Widen& widen) {
  const From* numbers = vector_of<From>(from, "numbers");
  if (lead < 0 || lead > 15) throw py::value_error("lead is " + std::to_string(lead) + ", and must lie in 0..15");
  py::array_t<To> out(from.size() + 32);
  std::fill_n(out.mutable_data(), out.size(), To{-1});
  const bool rising = widen(numbers, from.size(), out.mutable_data() + lead);
  stream_fence();
  return py::make_tuple(out, rising);
}

py::tuple widen_py(const py::array& numbers, bool genes, int64_t lead, const std::string& simd) {
  const WidenPath path = simd == "avx512" ? WidenPath::avx512 : simd == "avx2" ? WidenPath::avx2 : WidenPath::scalar;
  if (path > best_widen_path()) throw py::value_error("simd=" + simd + " is not to be had on this machine");
  return dispatch<uint8_t, uint16_t, int32_t>(numbers, "numbers", "cast it", [&](auto tag) {
    using From = typename decltype(tag)::type;
    if (genes) {
      return widened<From, int32_t>(numbers, lead, [&](auto... args) { return widen_genes(args..., path); });
    }
    return widened<From, float>(numbers, lead, [&](auto... args) { return widen_values(args..., path), true; });
  });
}

}  // namespace

void bind_packed_source(py::module_& module) {
  py::class_<PackedSource> source(module, "PackedRows",
                                  "Packed records as pack_rows makes them, as a source of batches; any order is fast.");
  source
      .def(py::init<py::array, py::array, int64_t, std::string>(), py::arg("bytes").noconvert(),
           py::arg("offsets").noconvert(), py::arg("n_vars"), py::arg("simd") = "auto")
      .def_readonly("n_rows", &PackedSource::n_rows)
      .def_readonly("n_vars", &PackedSource::n_vars);
  bind_batches<PackedSource>(source);
  module.def("widen", &widen_py, "Numbers as a sparse batch gets them, after `lead` places of a line; for tests.",
             py::arg("numbers").noconvert(), py::arg("genes"), py::arg("lead") = 0, py::arg("simd") = "scalar");
}

}  // namespace scdd
