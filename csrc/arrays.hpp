// NumPy arrays at the border: dtype, shape and layout are checked, nothing is ever copied or cast.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>  // std::optional

#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>

#include "csr.hpp"

namespace scdd {

namespace py = pybind11;

inline std::string dtype_name(const py::array& array) { return py::str(array.dtype()).cast<std::string>(); }

template <class T>
inline bool has_dtype(const py::array& array) {
  return py::isinstance<py::array_t<T>>(array);
}

inline void require_layout(const py::array& array, const char* name, int ndim) {
  constexpr int kWanted = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if (array.ndim() != ndim) {
    throw py::value_error(std::string(name) + " has " + std::to_string(array.ndim()) + " dimensions, and must have " +
                          std::to_string(ndim));
  }
  if ((array.flags() & kWanted) != kWanted) {
    throw py::value_error(std::string(name) + " is strided or unaligned; pass np.ascontiguousarray(" + name + ")");
  }
}

template <class T>
void require_dtype(const py::array& array, const char* name) {
  if (!has_dtype<T>(array)) {
    throw py::type_error(std::string(name) + " has dtype " + dtype_name(array) + ", and must have " +
                         py::str(py::dtype::of<T>()).template cast<std::string>());
  }
}

template <class T>
const T* vector_of(const py::array& array, const char* name, int64_t size = -1) {
  require_dtype<T>(array, name);
  require_layout(array, name, 1);
  if (size >= 0 && array.size() != size) {
    throw py::value_error(std::string(name) + " has " + std::to_string(array.size()) + " values, and must have " +
                          std::to_string(size));
  }
  return static_cast<const T*>(array.data());
}

template <class T>
const T* optional_vector_of(const std::optional<py::array>& array, const char* name, int64_t size) {
  return array ? vector_of<T>(*array, name, size) : nullptr;
}

// An output: also writeable.
template <class T>
T* output_of(py::array& array, const char* name, int64_t size) {
  vector_of<T>(array, name, size);
  if (!array.writeable()) throw py::value_error(std::string(name) + " is read-only, and is to be written");
  return static_cast<T*>(array.mutable_data());
}

template <class T>
struct Tag {
  using type = T;
};

// visit(Tag<T>{}) for the T among Types that the array holds.
template <class... Types, class Visit>
auto dispatch(const py::array& array, const char* name, const char* remedy, const Visit& visit) {
  using Result = std::common_type_t<decltype(visit(Tag<Types>{}))...>;
  std::optional<std::conditional_t<std::is_void_v<Result>, bool, Result>> result;
  const auto attempt = [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (!has_dtype<T>(array)) return false;
    if constexpr (std::is_void_v<Result>) {
      visit(tag);
      result = true;
    } else {
      result = visit(tag);
    }
    return true;
  };
  if (!(attempt(Tag<Types>{}) || ...)) {
    throw py::type_error(std::string(name) + " has dtype " + dtype_name(array) + ", which is not supported; " + remedy);
  }
  if constexpr (!std::is_void_v<Result>) return *result;
}

template <class Visit>
auto dispatch_values(const py::array& data, const Visit& visit) {
  return dispatch<float, double, int32_t, int64_t, uint16_t, uint8_t>(data, "data", "cast it to float32", visit);
}

template <class Visit>
auto dispatch_indices(const py::array& indices, const Visit& visit) {
  return dispatch<int32_t, int64_t, uint16_t>(indices, "indices", "cast it to int32", visit);
}

inline RowPointers row_pointers(const py::array& indptr, int64_t nnz) {
  const int64_t* pointer = vector_of<int64_t>(indptr, "indptr");
  if (indptr.size() == 0) throw py::value_error("indptr is empty, and must have one value more than there are rows");
  return {pointer, indptr.size() - 1, nnz};
}

template <class Value, class Index>
Csr<Value, Index> csr_of(const py::array& data, const py::array& indices, const py::array& indptr, int64_t n_vars) {
  const Value* values = vector_of<Value>(data, "data");
  const Index* genes = vector_of<Index>(indices, "indices", data.size());
  if (n_vars < 0 || n_vars > INT32_MAX) {
    throw py::value_error("n_vars is " + std::to_string(n_vars) + ", and must lie in 0..2147483647");
  }
  return {values, genes, row_pointers(indptr, data.size()), n_vars};
}

// visit(Csr<Value, Index>) for the types that the arrays hold.
template <class Visit>
auto dispatch_csr(const py::array& data, const py::array& indices, const py::array& indptr, int64_t n_vars,
                  const Visit& visit) {
  return dispatch_values(data, [&](auto value) {
    return dispatch_indices(indices, [&](auto index) {
      using Value = typename decltype(value)::type;
      using Index = typename decltype(index)::type;
      return visit(csr_of<Value, Index>(data, indices, indptr, n_vars));
    });
  });
}

// Every column is -1 (drop the gene) or lies in 0..n_columns-1.
inline void check_columns(const int32_t* column_of_gene, int64_t n_vars, int64_t n_columns) {
  for (int64_t gene = 0; gene < n_vars; ++gene) {
    if (column_of_gene[gene] < -1 || column_of_gene[gene] >= n_columns) {
      fail_index("column_of_gene[" + std::to_string(gene) + "] = " + std::to_string(column_of_gene[gene]) +
                 " is neither -1 nor in 0.." + std::to_string(n_columns - 1));
    }
  }
}

inline void require_threads(int64_t threads) {
  if (threads < 1) throw py::value_error("threads is " + std::to_string(threads) + ", and must be at least 1");
}

void bind_gather_dense(py::module_& module);
void bind_gather_csr(py::module_& module);
void bind_statistics(py::module_& module);
void bind_validate(py::module_& module);
void bind_codec(py::module_& module);
void bind_stored(py::module_& module);
void bind_packed(py::module_& module);
void bind_packed_source(py::module_& module);
void bind_spmm(py::module_& module);
void bind_tokens(py::module_& module);

}  // namespace scdd
