#include "validate.hpp"

#include "arrays.hpp"

namespace scdd {

namespace {

constexpr const char* kValidateDoc = R"(ValueError, with the place of the first fault, unless this is a CSR matrix.

indptr int64 [n_rows + 1] must start at 0, never decrease and end at nnz; indices [nnz] must lie in 0..n_vars-1.
Unsorted and duplicate indices are legal.)";

constexpr const char* kValuesDoc = R"(Position of the first NaN, infinite and negative value (-1: none); all whole?

Returns (first_nan, first_infinite, first_negative, integers).)";

void validate_py(const py::array& indptr, const py::array& indices, int64_t n_rows, int64_t n_vars, int64_t nnz) {
  if (n_rows < 0 || n_vars < 0 || nnz < 0) throw py::value_error("n_rows, n_vars and nnz must be 0 or more");
  const int64_t* pointers = vector_of<int64_t>(indptr, "indptr", n_rows + 1);
  dispatch_indices(indices, [&](auto tag) {
    const auto* genes = vector_of<typename decltype(tag)::type>(indices, "indices", nnz);
    const py::gil_scoped_release unlocked;
    validate_indptr(pointers, n_rows, nnz);
    validate_indices(genes, pointers, n_vars, nnz);
  });
}

py::tuple check_values_py(const py::array& data) {
  const ValueFaults faults = dispatch_values(data, [&](auto tag) {
    const auto* values = vector_of<typename decltype(tag)::type>(data, "data");
    const py::gil_scoped_release unlocked;
    return check_values(values, data.size());
  });
  return py::make_tuple(faults.first_nan, faults.first_infinite, faults.first_negative, faults.integers);
}

}  // namespace

void bind_validate(py::module_& module) {
  module.def("validate", &validate_py, kValidateDoc, py::arg("indptr").noconvert(), py::arg("indices").noconvert(),
             py::arg("n_rows"), py::arg("n_vars"), py::arg("nnz"));
  module.def("check_values", &check_values_py, kValuesDoc, py::arg("data").noconvert());
}

}  // namespace scdd
