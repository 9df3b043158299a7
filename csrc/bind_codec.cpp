// The decoders, one chunk at a time: what the tests call, and what readers of metadata ask.
#include <string>
#include <vector>

#include "arrays.hpp"
#include "codec.hpp"

namespace scdd {

namespace {

py::dict codecs() {
  py::dict libraries;
  for (size_t i = 0; i < kKinds; ++i) {
    const auto kind = static_cast<Kind>(i);
    const std::string library = library_of(kind);
    libraries[name_of(kind)] = library.empty() ? py::object(py::none()) : py::object(py::str(library));
  }
  return libraries;
}

py::array_t<uint8_t> decode_chunk(const py::buffer& encoded, const std::vector<NamedStep>& steps, uint32_t filter_mask,
                                  size_t chunk_bytes, size_t wanted) {
  const py::buffer_info info = encoded.request();
  if (info.itemsize != 1 || info.ndim != 1 || (info.size > 0 && info.strides[0] != 1)) {
    throw py::type_error("encoded must be contiguous bytes");
  }
  if (wanted > chunk_bytes || chunk_bytes > PTRDIFF_MAX / 4) {
    throw py::value_error(std::to_string(wanted) + " bytes are wanted of a chunk of " + std::to_string(chunk_bytes));
  }
  const Pipeline pipeline = pipeline_of(steps);
  py::array_t<uint8_t> out(static_cast<py::ssize_t>(chunk_bytes + kDecodeSlack));
  uint8_t* const to = out.mutable_data();
  {
    py::gil_scoped_release release;
    DecodeScratch scratch;
    pipeline.decode(static_cast<const uint8_t*>(info.ptr), static_cast<size_t>(info.size), filter_mask, to, chunk_bytes,
                    wanted, scratch);
  }
  return py::array_t<uint8_t>(static_cast<py::ssize_t>(wanted), to, out);  // a view of `out`
}

}  // namespace

void bind_codec(py::module_& module) {
  py::register_exception<DecodeError>(module, "DecodeError", PyExc_ValueError);
  module.def("codecs", &codecs,
             "Which kinds of chunk codecs there are: name -> library and version, None where it was not built.");
  module.def("decode_chunk", &decode_chunk, py::arg("encoded"), py::arg("steps"), py::arg("filter_mask"),
             py::arg("chunk_bytes"), py::arg("wanted"),
             "The first `wanted` of the `chunk_bytes` bytes of one chunk, uint8 [wanted].\n\n"
             "steps: (kind, parameter, bit of the HDF5 filter mask or -1), in the order in which they are undone.\n"
             "DecodeError: the chunk is damaged, or holds another number of bytes than declared.");
}

}  // namespace scdd
