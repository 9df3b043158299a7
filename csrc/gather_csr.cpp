#include "gather_csr.hpp"

#include "arrays.hpp"

namespace scdd {

namespace {

constexpr const char* kDoc = R"(Chosen rows over chosen genes, as (data float32, indices int32, indptr int64).

Columns are in order within each row, whatever the order of the source; duplicates are kept, in their order.

Parameters
----------
data, indices, indptr : the matrix in CSR form
rows : int64 [B], rows in the order wanted; may repeat
column_of_gene : int32 [n_vars], column of each gene in the result, -1 to drop it; None keeps every gene
n_vars : number of genes of the matrix; needed only where column_of_gene is None
threads : at least 1)";

py::tuple gather_csr_py(const py::array& data, const py::array& indices, const py::array& indptr, const py::array& rows,
                        const std::optional<py::array>& column_of_gene, std::optional<int64_t> n_vars,
                        int64_t threads) {
  const int64_t* row_ids = vector_of<int64_t>(rows, "rows");
  require_threads(threads);
  if (!column_of_gene && !n_vars) throw py::value_error("n_vars is needed where column_of_gene is None");
  const int64_t size = column_of_gene ? column_of_gene->size() : *n_vars;
  if (n_vars && *n_vars != size) {
    throw py::value_error("column_of_gene has " + std::to_string(size) + " values, and must have " +
                          std::to_string(*n_vars));
  }
  const int32_t* columns = optional_vector_of<int32_t>(column_of_gene, "column_of_gene", size);
  if (columns) check_columns(columns, size, INT32_MAX);
  return dispatch_csr(data, indices, indptr, size, [&](const auto& matrix) -> py::tuple {
    const CsrGather gather{matrix, row_ids, rows.size(), columns, threads};
    py::array_t<int64_t> out_indptr(rows.size() + 1);
    int64_t* pointers = out_indptr.mutable_data();
    {
      const py::gil_scoped_release unlocked;
      gather.count(pointers);
    }
    py::array_t<float> out_data(pointers[rows.size()]);
    py::array_t<int32_t> out_indices(pointers[rows.size()]);
    float* values = out_data.mutable_data();
    int32_t* genes = out_indices.mutable_data();
    {
      const py::gil_scoped_release unlocked;
      gather.fill(pointers, values, genes);
    }
    return py::make_tuple(out_data, out_indices, out_indptr);
  });
}

}  // namespace

void bind_gather_csr(py::module_& module) {
  module.def("gather_csr", &gather_csr_py, kDoc, py::arg("data").noconvert(), py::arg("indices").noconvert(),
             py::arg("indptr").noconvert(), py::arg("rows").noconvert(),
             py::arg("column_of_gene").noconvert() = py::none(), py::arg("n_vars") = py::none(),
             py::arg("threads") = 1);
}

}  // namespace scdd
