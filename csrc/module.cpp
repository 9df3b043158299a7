// The module scdd._csr: each operation is bound in the file that carries its name.
#include "arrays.hpp"

PYBIND11_MODULE(_csr, module) {
  module.doc() =
      "Sparse rows to batches, in C++ and without the interpreter lock.\n\n"
      "Arrays are NumPy's, C-contiguous and of the dtype named; nothing is cast or copied. data may be float32,\n"
      "float64, int32, int64, uint16 or uint8; indices int32, int64 or uint16; indptr is int64. Every row and gene\n"
      "is checked before use: IndexError names the first that lies outside. Results never depend on threads.";
  scdd::bind_gather_dense(module);
  scdd::bind_gather_csr(module);
  scdd::bind_statistics(module);
  scdd::bind_validate(module);
  scdd::bind_codec(module);
  scdd::bind_stored(module);
  scdd::bind_packed(module);
  scdd::bind_packed_source(module);
  scdd::bind_spmm(module);
  scdd::bind_tokens(module);
}
