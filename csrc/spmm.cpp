#include "arrays.hpp"
#include "spmm.hpp"

namespace scdd {

namespace {

constexpr const char* kTimesDoc = R"(out = f(X) dense, where f(x) = row_scale * x, or log(1 + row_scale * x).

Entries of one gene in one cell are added up first. f is taken in float32, sums in float64.

Parameters
----------
data, indices, indptr : the matrix in CSR form
n_vars : number of genes
dense : float32 or float64 [n_vars, k]
row_scale : float64 [n_rows] or None
log1p : whether to take log(1 + x)
out : dtype of dense, [n_rows, k], written
threads : most threads)";

constexpr const char* kTransposedDoc = R"(out += f(X)^T dense, where f(x) = row_scale * x, or log(1 + row_scale * x).

Parameters
----------
data, indices, indptr, n_vars, row_scale, log1p, threads : as for csr_times_dense
dense : float32 or float64 [n_rows, k]
out : float64 [n_vars, k], added to; nothing is added if an index is found to be wrong)";

void require_shape(const py::array& array, const char* name, int64_t rows, int64_t columns) {
  require_layout(array, name, 2);
  if (array.shape(0) != rows || array.shape(1) != columns) {
    throw py::value_error(std::string(name) + " has shape [" + std::to_string(array.shape(0)) + ", " +
                          std::to_string(array.shape(1)) + "], and must have [" + std::to_string(rows) + ", " +
                          std::to_string(columns) + "]");
  }
}

void require_writeable(const py::array& array, const char* name) {
  if (!array.writeable()) throw py::value_error(std::string(name) + " is read-only, and is to be written");
}

template <class Visit>
void dispatch_real(const py::array& dense, const Visit& visit) {
  dispatch<float, double>(dense, "dense", "cast it to float64", visit);
}

void csr_times_dense_py(const py::array& data, const py::array& indices, const py::array& indptr, int64_t n_vars,
                        const py::array& dense, const std::optional<py::array>& row_scale, bool log1p, py::array out,
                        int64_t threads) {
  require_threads(threads);
  require_layout(dense, "dense", 2);
  const int64_t n_rows = row_pointers(indptr, data.size()).n_rows, k = dense.shape(1);
  const RowTransform transform{optional_vector_of<double>(row_scale, "row_scale", n_rows), log1p};
  require_shape(dense, "dense", n_vars, k);
  require_shape(out, "out", n_rows, k);
  require_writeable(out, "out");
  dispatch_real(dense, [&](auto tag) {
    using Real = typename decltype(tag)::type;
    require_dtype<Real>(out, "out");
    const auto* from = static_cast<const Real*>(dense.data());
    auto* to = static_cast<Real*>(out.mutable_data());
    dispatch_csr(data, indices, indptr, n_vars, [&](const auto& matrix) {
      const py::gil_scoped_release unlocked;
      csr_times_dense(matrix, transform, from, k, to, threads);
    });
  });
}

void csr_transposed_times_dense_py(const py::array& data, const py::array& indices, const py::array& indptr,
                                   int64_t n_vars, const py::array& dense, const std::optional<py::array>& row_scale,
                                   bool log1p, py::array out, int64_t threads) {
  require_threads(threads);
  require_layout(dense, "dense", 2);
  const int64_t n_rows = row_pointers(indptr, data.size()).n_rows, k = dense.shape(1);
  const RowTransform transform{optional_vector_of<double>(row_scale, "row_scale", n_rows), log1p};
  require_shape(dense, "dense", n_rows, k);
  require_shape(out, "out", n_vars, k);
  require_dtype<double>(out, "out");
  require_writeable(out, "out");
  auto* to = static_cast<double*>(out.mutable_data());
  dispatch_real(dense, [&](auto tag) {
    using Real = typename decltype(tag)::type;
    const auto* from = static_cast<const Real*>(dense.data());
    dispatch_csr(data, indices, indptr, n_vars, [&](const auto& matrix) {
      const py::gil_scoped_release unlocked;
      csr_transposed_times_dense(matrix, transform, from, k, to, threads);
    });
  });
}

}  // namespace

void bind_spmm(py::module_& module) {
  module.def("csr_times_dense", &csr_times_dense_py, kTimesDoc, py::arg("data").noconvert(),
             py::arg("indices").noconvert(), py::arg("indptr").noconvert(), py::arg("n_vars"),
             py::arg("dense").noconvert(), py::arg("row_scale").noconvert(), py::arg("log1p"),
             py::arg("out").noconvert(), py::arg("threads") = 1);
  module.def("csr_transposed_times_dense", &csr_transposed_times_dense_py, kTransposedDoc, py::arg("data").noconvert(),
             py::arg("indices").noconvert(), py::arg("indptr").noconvert(), py::arg("n_vars"),
             py::arg("dense").noconvert(), py::arg("row_scale").noconvert(), py::arg("log1p"),
             py::arg("out").noconvert(), py::arg("threads") = 1);
}

}  // namespace scdd
