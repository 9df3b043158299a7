#include "batches.hpp"
#include "packed_source.hpp"

namespace scdd {

void bind_packed_source(py::module_& module) {
  py::class_<PackedSource> source(module, "PackedRows",
                                  "Packed records as pack_rows makes them, as a source of batches; any order is fast.");
  source
      .def(py::init<py::array, py::array, int64_t>(), py::arg("bytes").noconvert(), py::arg("offsets").noconvert(),
           py::arg("n_vars"))
      .def_readonly("n_rows", &PackedSource::n_rows)
      .def_readonly("n_vars", &PackedSource::n_vars);
  bind_batches<PackedSource>(source);
}

}  // namespace scdd
