#include "batches.hpp"

namespace scdd {

namespace {

constexpr const char* kDoc = R"(x = log1p(target_sum * counts / total), then (x - mean) * inverse_std, clipped.

Parameters
----------
data, indices, indptr : the matrix in CSR form, as rows of cells over n_vars genes
rows : int64 [B], rows of the matrix in the order wanted; may repeat
column_of_gene : int32 [n_vars], column of each gene in `out`, -1 to drop it
out : float32 or float16 [B, G], overwritten; duplicate entries are added before anything else
totals : float64 [B] or None, size of each row over ALL genes; computed in the same pass if None
target_sum : what each row is scaled to; 0 leaves it as it is. A row of total 0 gives zeros
log1p : whether to take log(1 + x)
mean, inverse_std : float32 [G] or None, applied to zeros too
clip : values are kept within -clip..clip; 0 for no bound
bfloat16 : whether `out` is uint16 [B, G] and receives the bits of bfloat16
threads : at least 1

Returns
-------
float64 [B], the totals given or computed)";

py::array gather_dense_py(const py::array& data, const py::array& indices, const py::array& indptr,
                          const py::array& rows, const py::array& column_of_gene, py::array out,
                          const std::optional<py::array>& totals, double target_sum, bool log1p,
                          const std::optional<py::array>& mean, const std::optional<py::array>& inverse_std, float clip,
                          bool bfloat16, int64_t threads) {
  return dispatch_csr(data, indices, indptr, column_of_gene.size(), [&](const auto& matrix) {
    return dense_batch(ArrayRows(matrix), rows, column_of_gene, out, totals, target_sum, log1p, mean, inverse_std, clip,
                       bfloat16, threads);
  });
}

}  // namespace

void bind_gather_dense(py::module_& module) {
  module.def("gather_dense", &gather_dense_py, kDoc, py::arg("data").noconvert(), py::arg("indices").noconvert(),
             py::arg("indptr").noconvert(), py::arg("rows").noconvert(), py::arg("column_of_gene").noconvert(),
             py::arg("out").noconvert(), py::arg("totals").noconvert() = py::none(), py::arg("target_sum") = 0.0,
             py::arg("log1p") = false, py::arg("mean").noconvert() = py::none(),
             py::arg("inverse_std").noconvert() = py::none(), py::arg("clip") = 0.0f, py::arg("bfloat16") = false,
             py::arg("threads") = 1);
}

}  // namespace scdd
