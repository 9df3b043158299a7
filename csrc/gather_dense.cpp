#include "gather_dense.hpp"

#include "arrays.hpp"

namespace scdd {

namespace {

constexpr const char* kDoc = R"(x = log1p(target_sum * counts / total), then (x - mean) * inverse_std, clipped.

Parameters
----------
data, indices, indptr : the matrix in CSR form, as rows of cells over n_vars genes
rows : int64 [B], rows of the matrix in the order wanted; may repeat
column_of_gene : int32 [n_vars], column of each gene in `out`, -1 to drop it
out : float32 [B, G], overwritten; duplicate entries are added before anything else
totals : float64 [B] or None, size of each row over ALL genes; computed in the same pass if None
target_sum : what each row is scaled to; 0 leaves it as it is. A row of total 0 gives zeros
log1p : whether to take log(1 + x)
mean, inverse_std : float32 [G] or None, applied to zeros too
clip : values are kept within -clip..clip; 0 for no bound
threads : at least 1

Returns
-------
float64 [B], the totals given or computed)";

py::array gather_dense_py(const py::array& data, const py::array& indices, const py::array& indptr,
                          const py::array& rows, const py::array& column_of_gene, py::array out,
                          std::optional<py::array> totals, double target_sum, bool log1p,
                          const std::optional<py::array>& mean, const std::optional<py::array>& inverse_std, float clip,
                          int64_t threads) {
  const int64_t* row_ids = vector_of<int64_t>(rows, "rows");
  const int32_t* columns = vector_of<int32_t>(column_of_gene, "column_of_gene");
  require_dtype<float>(out, "out");
  require_layout(out, "out", 2);
  if (out.shape(0) != rows.size()) {
    throw py::value_error("out has " + std::to_string(out.shape(0)) + " rows, and must have " +
                          std::to_string(rows.size()));
  }
  if (!out.writeable()) throw py::value_error("out is read-only, and is to be written");
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
  auto* out_values = static_cast<float*>(out.mutable_data());
  dispatch_csr(data, indices, indptr, column_of_gene.size(), [&](const auto& matrix) {
    const py::gil_scoped_release unlocked;
    gather_dense(matrix, row_ids, rows.size(), columns, n_columns, transform, has_totals, used_totals, out_values,
                 threads);
  });
  return used;
}

}  // namespace

void bind_gather_dense(py::module_& module) {
  module.def("gather_dense", &gather_dense_py, kDoc, py::arg("data").noconvert(), py::arg("indices").noconvert(),
             py::arg("indptr").noconvert(), py::arg("rows").noconvert(), py::arg("column_of_gene").noconvert(),
             py::arg("out").noconvert(), py::arg("totals").noconvert() = py::none(), py::arg("target_sum") = 0.0,
             py::arg("log1p") = false, py::arg("mean").noconvert() = py::none(),
             py::arg("inverse_std").noconvert() = py::none(), py::arg("clip") = 0.0f, py::arg("threads") = 1);
}

}  // namespace scdd
