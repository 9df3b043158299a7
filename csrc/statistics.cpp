#include "arrays.hpp"
#include "column_moments.hpp"
#include "row_statistics.hpp"
#include "row_totals.hpp"

namespace scdd {

namespace {

constexpr const char* kTotalsDoc = R"(Sum of each row over all genes, float64 [len(rows)]; all rows if rows is None.)";

constexpr const char* kMomentsDoc = R"(Add to sum, sum_of_squares and nonzero what each gene has in these rows.

y = min(log1p(row_scale * x), clip_max), where x is the sum of a cell's entries for a gene; nonzero counts x != 0.
The same bits for any number of threads. If an index is found to be wrong, nothing is added.

Parameters
----------
data, indices, indptr : the matrix in CSR form
n_vars : number of genes
row_scale : float64 [n_rows] or None
log1p : whether to take log(1 + x)
clip_max : float64 [n_vars] or None, 0 or more
sum, sum_of_squares, nonzero : float64 [n_vars], added to
threads : most threads)";

constexpr const char* kRowStatisticsDoc = R"(Total, number of genes and total over marked genes of every cell.

Parameters
----------
data, indices, indptr : the matrix in CSR form
n_vars : number of genes
mask : uint8 [n_vars], non-zero where a gene is marked, or None
threads : most threads

Returns
-------
total, n_genes, marked : float64, int64, float64 [n_rows]; a gene counts if its entries do not add up to zero)";

py::array_t<double> row_totals_py(const py::array& data, const py::array& indptr,
                                  const std::optional<py::array>& rows) {
  const RowPointers pointers = row_pointers(indptr, data.size());
  const int64_t n = rows ? rows->size() : pointers.n_rows;
  const int64_t* row_ids = optional_vector_of<int64_t>(rows, "rows", n);
  py::array_t<double> totals(n);
  double* out = totals.mutable_data();
  dispatch_values(data, [&](auto tag) {
    const auto* values = vector_of<typename decltype(tag)::type>(data, "data");
    const py::gil_scoped_release unlocked;
    row_totals(values, pointers, row_ids, n, out);
  });
  return totals;
}

void column_moments_py(const py::array& data, const py::array& indices, const py::array& indptr, int64_t n_vars,
                       const std::optional<py::array>& row_scale, bool log1p, const std::optional<py::array>& clip_max,
                       py::array sum, py::array sum_of_squares, py::array nonzero, int64_t threads) {
  require_threads(threads);
  const MomentTransform transform{optional_vector_of<double>(row_scale, "row_scale", indptr.size() - 1), log1p,
                                  optional_vector_of<double>(clip_max, "clip_max", n_vars)};
  const Moments moments{output_of<double>(sum, "sum", n_vars),
                        output_of<double>(sum_of_squares, "sum_of_squares", n_vars),
                        output_of<double>(nonzero, "nonzero", n_vars)};
  for (int64_t gene = 0; transform.clip_max && gene < n_vars; ++gene) {
    if (!(transform.clip_max[gene] >= 0)) {
      throw py::value_error("clip_max[" + std::to_string(gene) + "] is " + std::to_string(transform.clip_max[gene]) +
                            ", and must be 0 or more");
    }
  }
  dispatch_csr(data, indices, indptr, n_vars, [&](const auto& matrix) {
    const py::gil_scoped_release unlocked;
    column_moments(matrix, transform, moments, threads);
  });
}

py::tuple row_statistics_py(const py::array& data, const py::array& indices, const py::array& indptr, int64_t n_vars,
                            const std::optional<py::array>& mask, int64_t threads) {
  require_threads(threads);
  const uint8_t* marks = optional_vector_of<uint8_t>(mask, "mask", n_vars);
  const int64_t n_rows = row_pointers(indptr, data.size()).n_rows;
  py::array_t<double> total(n_rows), marked(n_rows);
  py::array_t<int64_t> n_genes(n_rows);
  const RowStatistics out{total.mutable_data(), n_genes.mutable_data(), marked.mutable_data()};
  dispatch_csr(data, indices, indptr, n_vars, [&](const auto& matrix) {
    const py::gil_scoped_release unlocked;
    row_statistics(matrix, marks, out, threads);
  });
  return py::make_tuple(total, n_genes, marked);
}

}  // namespace

void bind_statistics(py::module_& module) {
  module.def("row_totals", &row_totals_py, kTotalsDoc, py::arg("data").noconvert(), py::arg("indptr").noconvert(),
             py::arg("rows").noconvert() = py::none());
  module.def("column_moments", &column_moments_py, kMomentsDoc, py::arg("data").noconvert(),
             py::arg("indices").noconvert(), py::arg("indptr").noconvert(), py::arg("n_vars"),
             py::arg("row_scale").noconvert(), py::arg("log1p"), py::arg("clip_max").noconvert(),
             py::arg("sum").noconvert(), py::arg("sum_of_squares").noconvert(), py::arg("nonzero").noconvert(),
             py::arg("threads") = 1);
  module.def("row_statistics", &row_statistics_py, kRowStatisticsDoc, py::arg("data").noconvert(),
             py::arg("indices").noconvert(), py::arg("indptr").noconvert(), py::arg("n_vars"),
             py::arg("mask").noconvert() = py::none(), py::arg("threads") = 1);
}

}  // namespace scdd
