#include "batches.hpp"

namespace scdd {

namespace {

constexpr const char* kDoc = R"(log1p(target_sum * counts / total) of chosen rows over chosen genes, as CSR.

Columns are in order within each row, whatever the order of the source, and duplicates are added up.

Parameters
----------
data, indices, indptr : the matrix in CSR form
rows : int64 [B], rows in the order wanted; may repeat
column_of_gene : int32 [n_vars], column of each gene in the result, -1 to drop it; None keeps every gene
n_vars : number of genes of the matrix; needed only where column_of_gene is None
target_sum : what each row is scaled to, by its total over ALL genes; 0 leaves it as it is
log1p : whether to take log(1 + x)
data_buffer, indices_buffer : float32, int32 or None; written to and returned (a slice) where large enough
threads : at least 1

Returns
-------
data float32, indices int32, indptr int64 [B + 1], totals float64 [B])";

py::tuple gather_csr_py(const py::array& data, const py::array& indices, const py::array& indptr, const py::array& rows,
                        const std::optional<py::array>& column_of_gene, std::optional<int64_t> n_vars,
                        double target_sum, bool log1p, const std::optional<py::array>& data_buffer,
                        const std::optional<py::array>& indices_buffer, int64_t threads) {
  if (!column_of_gene && !n_vars) throw py::value_error("n_vars is needed where column_of_gene is None");
  const int64_t size = column_of_gene ? column_of_gene->size() : *n_vars;
  if (n_vars && *n_vars != size) {
    throw py::value_error("column_of_gene has " + std::to_string(size) + " values, and must have " +
                          std::to_string(*n_vars));
  }
  return dispatch_csr(data, indices, indptr, size, [&](const auto& matrix) {
    return csr_batch(ArrayRows(matrix), rows, column_of_gene, target_sum, log1p, data_buffer, indices_buffer, threads);
  });
}

}  // namespace

void bind_gather_csr(py::module_& module) {
  module.def("gather_csr", &gather_csr_py, kDoc, py::arg("data").noconvert(), py::arg("indices").noconvert(),
             py::arg("indptr").noconvert(), py::arg("rows").noconvert(),
             py::arg("column_of_gene").noconvert() = py::none(), py::arg("n_vars") = py::none(),
             py::arg("target_sum") = 0.0, py::arg("log1p") = false,
             py::arg("data_buffer").noconvert() = py::none(), py::arg("indices_buffer").noconvert() = py::none(),
             py::arg("threads") = 1);
}

}  // namespace scdd
