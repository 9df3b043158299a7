#include <cstdlib>
#include <optional>
#include <string>
#include <utility>

#include "arrays.hpp"
#include "packed.hpp"
#include "packed_encode.hpp"
#include "packed_unpack.hpp"

namespace scdd {

namespace {

constexpr const char* kPackDoc = R"(Rows as packed records: (bytes uint8, offsets int64 [n + 1]).

About two bytes a stored value for counts and for log-normalised counts. Rows come out in order of genes, duplicates
in their order; every bit of a float32 is kept, other dtypes are cast to float32.

Parameters
----------
data, indices, indptr : the matrix in CSR form
n_vars : number of genes
threads : at least 1)";

constexpr const char* kUnpackDoc = R"(Chosen packed rows as (data float32, indices int32, indptr int64).

ValueError names a damaged row, IndexError a row that is not there or one that holds a gene outside 0..n_vars-1.

Parameters
----------
bytes, offsets : as pack_rows gives them; may be read-only memory maps
rows : int64 [B], rows in the order wanted; may repeat; None is all of them
n_vars : number of genes
threads : at least 1
simd : "auto", or "scalar", "avx2", "avx512" where the machine has them (for tests))";

constexpr const char* kTotalsDoc =
    "Sums of packed rows, float64 [B], from the records' headers: nothing is decoded.";

// Hands the buffer over, so that a large result is not copied once more.
py::array_t<uint8_t> array_of(ByteSink&& sink) {
  const auto size = static_cast<py::ssize_t>(sink.size());
  uint8_t* const bytes = sink.release();
  const py::capsule owner(bytes ? bytes : std::malloc(1), [](void* pointer) { std::free(pointer); });
  return py::array_t<uint8_t>({size}, {1}, static_cast<const uint8_t*>(owner), owner);
}

py::tuple pack_rows_py(const py::array& data, const py::array& indices, const py::array& indptr, int64_t n_vars,
                       int64_t threads) {
  require_threads(threads);
  return dispatch_csr(data, indices, indptr, n_vars, [&](const auto& matrix) -> py::tuple {
    py::array_t<int64_t> offsets(matrix.rows.n_rows + 1);
    int64_t* const out = offsets.mutable_data();
    ByteSink sink;
    {
      const py::gil_scoped_release unlocked;
      sink = encode_rows(matrix, threads, out);
    }
    return py::make_tuple(array_of(std::move(sink)), offsets);
  });
}

PackedRows packed_rows_of(const py::array& bytes, const py::array& offsets, int64_t n_vars, const std::string& simd) {
  const uint8_t* records = vector_of<uint8_t>(bytes, "bytes");
  const int64_t* places = vector_of<int64_t>(offsets, "offsets");
  if (offsets.size() == 0) throw py::value_error("offsets is empty, and must have one value more than there are rows");
  if (n_vars < 0 || n_vars > INT32_MAX) {
    throw py::value_error("n_vars is " + std::to_string(n_vars) + ", and must lie in 0..2147483647");
  }
  const PackedKernels* kernels = packed_kernels(simd.c_str());
  if (!kernels) throw py::value_error("simd=" + simd + " is not to be had on this machine; use auto");
  return {records, bytes.size(), places, offsets.size() - 1, n_vars, kernels};
}

py::tuple unpack_rows_py(const py::array& bytes, const py::array& offsets, const std::optional<py::array>& rows,
                         int64_t n_vars, int64_t threads, const std::string& simd) {
  require_threads(threads);
  const PackedRows packed = packed_rows_of(bytes, offsets, n_vars, simd);
  const int64_t* chosen = rows ? vector_of<int64_t>(*rows, "rows") : nullptr;
  const int64_t n = rows ? rows->size() : packed.n_rows;
  const PackedUnpack work{packed, chosen, n, threads};
  py::array_t<int64_t> indptr(n + 1);
  int64_t* const pointers = indptr.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    work.count(pointers);
  }
  py::array_t<float> data(pointers[n]);
  py::array_t<int32_t> indices(pointers[n]);
  float* const values = data.mutable_data();
  int32_t* const genes = indices.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    work.fill(pointers, values, genes);
  }
  return py::make_tuple(data, indices, indptr);
}

py::array_t<double> packed_totals_py(const py::array& bytes, const py::array& offsets,
                                     const std::optional<py::array>& rows) {
  const PackedRows packed = packed_rows_of(bytes, offsets, 0, "auto");
  const int64_t* chosen = rows ? vector_of<int64_t>(*rows, "rows") : nullptr;
  const int64_t n = rows ? rows->size() : packed.n_rows;
  py::array_t<double> totals(n);
  double* const out = totals.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    for (int64_t i = 0; i < n; ++i) out[i] = packed.total(chosen ? chosen[i] : i);
  }
  return totals;
}

py::list packed_simd_py() {
  py::list names;
  for (const char* name : {"scalar", "avx2", "avx512"}) {
    if (packed_kernels(name)) names.append(name);
  }
  return names;
}

}  // namespace

void bind_packed(py::module_& module) {
  module.def("pack_rows", &pack_rows_py, kPackDoc, py::arg("data").noconvert(), py::arg("indices").noconvert(),
             py::arg("indptr").noconvert(), py::arg("n_vars"), py::arg("threads") = 1);
  module.def("unpack_rows", &unpack_rows_py, kUnpackDoc, py::arg("bytes").noconvert(), py::arg("offsets").noconvert(),
             py::arg("rows").noconvert(), py::arg("n_vars"), py::arg("threads") = 1, py::arg("simd") = "auto");
  module.def("packed_totals", &packed_totals_py, kTotalsDoc, py::arg("bytes").noconvert(),
             py::arg("offsets").noconvert(), py::arg("rows").noconvert() = py::none());
  module.def("packed_simd", &packed_simd_py, "Names of the instruction sets that unpack_rows can use here.");
}

}  // namespace scdd
