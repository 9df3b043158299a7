// Matrices in files and the shuffle window, as Python sees them.
#include "batches.hpp"
#include "stored_csr.hpp"

namespace scdd {

namespace {

constexpr const char* kArrayDoc = R"(A one-dimensional array that lies in chunks in files.

Parameters
----------
name : what error messages call it
paths : the files
file_of_chunk, offsets, sizes, masks : int32, int64, int64, uint32 [n_chunks]; offset -1: never written
chunk_length, length : elements
dtype : NumPy's kind and size, e.g. "f4"
swapped : whether the bytes are in the other order than this machine's
steps : (kind, parameter, mask_bit) of each filter, in the order in which they are undone
fill_value : of chunks that were never written)";

constexpr const char* kStoredDoc = R"(A CSR matrix in files; ValueError unless indptr fits both arrays.)";

constexpr const char* kWindowDoc = R"(Room for n_rows decoded rows over n_vars genes, each held in the narrowest form that is exact.)";

constexpr const char* kWindowMemoryDoc = R"(Memory that windows take turns in, and what they leave behind for each other.

Parameters
----------
segment_bytes : what a thread takes at a time, a multiple of 64
edge_bytes : at most so much is kept of rows that lie in two chunks, so that no chunk is decoded twice; 0 for none)";

constexpr const char* kReadIntoDoc = R"(Put rows into a window; returns faults as read() does.

Parameters
----------
window : what to write to
rows : int64 [n], ascending, each once
slots : int64 [n], where each goes; a slot must not be given twice
column_of_gene : int32 [n_vars], the window's gene for each of the file's, -1 to drop it; None where they agree
threads : at least 1
cancel : Cancel or None, looked at every few dozen rows)";

constexpr const char* kReadDoc = R"(Rows as (data float32, indices int32, indptr int64, faults); entries as the file has them.

faults are the first rows with a NaN, infinite, negative, fractional value, -1 for none.)";

template <class T>
std::vector<T> vector_copy(const py::array& array, const char* name) {
  const T* values = vector_of<T>(array, name);
  return std::vector<T>(values, values + array.size());
}

std::shared_ptr<ChunkedArray> make_array(std::string name, std::vector<std::string> paths, const py::array& files,
                                         const py::array& offsets, const py::array& sizes, const py::array& masks,
                                         int64_t chunk_length, int64_t length, const std::string& dtype, bool swapped,
                                         const std::vector<NamedStep>& steps, double fill) {
  ChunkTable table{vector_copy<int32_t>(files, "file_of_chunk"), vector_copy<int64_t>(offsets, "offsets"),
                   vector_copy<int64_t>(sizes, "sizes"),         vector_copy<uint32_t>(masks, "masks"),
                   chunk_length,                                 length};
  return std::make_shared<ChunkedArray>(std::move(name), std::make_shared<Files>(std::move(paths)), std::move(table),
                                        element_of(dtype), swapped, pipeline_of(steps), fill);
}

py::array_t<uint8_t> read_elements(const ChunkedArray& array, int64_t begin, int64_t end) {
  if (begin < 0 || end < begin || end > array.length()) {
    throw py::index_error("elements " + std::to_string(begin) + ".." + std::to_string(end) + " lie outside 0.." +
                          std::to_string(array.length()));
  }
  const int64_t size = (end - begin) * static_cast<int64_t>(size_of(array.element()));
  py::array_t<uint8_t> out(size);
  uint8_t* to = out.mutable_data();
  if (size > 0) {
    const py::gil_scoped_release unlocked;
    ArrayScratch scratch;
    std::memcpy(to, array.read(begin, end, scratch), static_cast<size_t>(size));
  }
  return out;
}

py::tuple faults_of(const ValueFaultRows& faults) {
  const auto row = [](int64_t first) { return first == INT64_MAX ? int64_t{-1} : first; };
  return py::make_tuple(row(faults.nan), row(faults.infinite), row(faults.negative), row(faults.fractional));
}

// What all threads found.
struct SharedFaults {
  std::mutex mutex;
  ValueFaultRows found;

  void merge(const ValueFaultRows& own) {
    const std::lock_guard<std::mutex> hold(mutex);
    found.merge(own);
  }
};

// Rows that go to a window, over its genes.
class WindowSink {
 public:
  WindowSink(Window& window, const int64_t* slots, const int32_t* column_of_gene, SharedFaults& faults)
      : writer_(std::make_unique<Window::Writer>(window)), slots_(slots), column_of_gene_(column_of_gene),
        faults_(&faults) {}
  WindowSink(WindowSink&&) = default;
  ~WindowSink() {
    if (writer_) faults_->merge(writer_->faults());
  }

  void put(int64_t k, int64_t row, const float* values, const int32_t* genes, int64_t n) {
    if (!column_of_gene_) return writer_->put(slots_[k], row, values, genes, n);
    float* kept_values = values_.reserve_of<float>(static_cast<size_t>(n));
    int32_t* kept_genes = genes_.reserve_of<int32_t>(static_cast<size_t>(n));
    int64_t kept = 0;
    for (int64_t p = 0; p < n; ++p) {
      const int32_t column = column_of_gene_[genes[p]];
      kept_values[kept] = values[p];
      kept_genes[kept] = column;
      kept += column >= 0;
    }
    writer_->put(slots_[k], row, kept_values, kept_genes, kept);
  }

 private:
  std::unique_ptr<Window::Writer> writer_;
  const int64_t* slots_;
  const int32_t* column_of_gene_;
  SharedFaults* faults_;
  Buffer values_, genes_;
};

// Rows that go to CSR arrays, whose places are known beforehand.
class ArraySink {
 public:
  ArraySink(const int64_t* indptr, float* data, int32_t* indices, SharedFaults& all)
      : indptr_(indptr), data_(data), indices_(indices), all_(&all) {}
  ArraySink(ArraySink&& other) noexcept
      : indptr_(other.indptr_), data_(other.data_), indices_(other.indices_), all_(std::exchange(other.all_, nullptr)) {}
  ~ArraySink() {
    if (all_) all_->merge(faults_);
  }

  void put(int64_t k, int64_t row, const float* values, const int32_t* genes, int64_t n) {
    if (width_of(values, n) == Width::real) note_faults(values, n, row, faults_);
    std::copy(values, values + n, data_ + indptr_[k]);
    std::copy(genes, genes + n, indices_ + indptr_[k]);
  }

 private:
  const int64_t* indptr_;
  float* data_;
  int32_t* indices_;
  SharedFaults* all_;
  ValueFaultRows faults_;
};

const int64_t* checked_slots(const py::array& slots, int64_t n, const Window& window) {
  const int64_t* places = vector_of<int64_t>(slots, "slots", n);
  std::vector<bool> taken(static_cast<size_t>(window.n_rows), false);
  for (int64_t k = 0; k < n; ++k) {
    if (outside(places[k], window.n_rows)) {
      fail_index("slot " + std::to_string(places[k]) + " lies outside 0.." + std::to_string(window.n_rows - 1));
    }
    if (taken[places[k]]) fail_value("slot " + std::to_string(places[k]) + " is given twice");
    taken[places[k]] = true;
  }
  return places;
}

py::tuple read_into(const StoredCsr& stored, Window& window, const py::array& rows, const py::array& slots,
               const std::optional<py::array>& column_of_gene, int64_t threads, const Cancel* cancel) {
  const int64_t* row_ids = vector_of<int64_t>(rows, "rows");
  const int64_t* places = checked_slots(slots, rows.size(), window);
  const int32_t* columns = optional_vector_of<int32_t>(column_of_gene, "column_of_gene", stored.n_vars);
  if (columns) check_columns(columns, stored.n_vars, window.n_vars);
  if (!columns && stored.n_vars != window.n_vars) {
    throw py::value_error("the window has " + std::to_string(window.n_vars) + " genes and the matrix " +
                          std::to_string(stored.n_vars) + "; pass column_of_gene");
  }
  require_threads(threads);
  SharedFaults faults;
  {
    const py::gil_scoped_release unlocked;
    stored.read(row_ids, rows.size(), threads, cancel, window.edges(),
                [&] { return WindowSink(window, places, columns, faults); });
  }
  return faults_of(faults.found);
}

// What lies in memory goes to the same window as what lies in files.
py::tuple put_rows(Window& window, const py::array& data, const py::array& indices, const py::array& indptr,
              const py::array& rows, const py::array& slots, const std::optional<py::array>& column_of_gene,
              int64_t n_vars) {
  const int64_t* row_ids = vector_of<int64_t>(rows, "rows");
  const int64_t* places = checked_slots(slots, rows.size(), window);
  const int32_t* columns = optional_vector_of<int32_t>(column_of_gene, "column_of_gene", n_vars);
  if (columns) check_columns(columns, n_vars, window.n_vars);
  if (!columns && n_vars != window.n_vars) throw py::value_error("the window has other genes; pass column_of_gene");
  SharedFaults faults;
  dispatch_csr(data, indices, indptr, n_vars, [&](const auto& matrix) {
    const py::gil_scoped_release unlocked;
    const ArrayRows source(matrix);
    WindowSink sink(window, places, columns, faults);
    RowScratch scratch, converted;
    for (int64_t k = 0; k < rows.size(); ++k) {
      const int64_t next = k + 1 < rows.size() ? row_ids[k + 1] : -1;
      source.view(row_ids[k], next, scratch, [&](const auto* values, const auto* genes, int64_t n) {
        float* as_float = converted.values.template reserve_of<float>(static_cast<size_t>(n));
        int32_t* as_int = converted.genes.template reserve_of<int32_t>(static_cast<size_t>(n));
        for (int64_t p = 0; p < n; ++p) as_float[p] = static_cast<float>(values[p]);
        for (int64_t p = 0; p < n; ++p) as_int[p] = static_cast<int32_t>(genes[p]);
        sink.put(k, row_ids[k], as_float, as_int, n);
      });
    }
  });
  return faults_of(faults.found);
}

py::tuple read_rows(const StoredCsr& stored, const py::array& rows, int64_t threads, const Cancel* cancel) {
  const int64_t* row_ids = vector_of<int64_t>(rows, "rows");
  const int64_t n = rows.size();
  require_threads(threads);
  py::array_t<int64_t> indptr(n + 1);
  int64_t* pointers = indptr.mutable_data();
  pointers[0] = 0;
  for (int64_t k = 0; k < n; ++k) {
    if (outside(row_ids[k], stored.n_rows)) {
      fail_index("row " + std::to_string(row_ids[k]) + " lies outside 0.." + std::to_string(stored.n_rows - 1));
    }
    pointers[k + 1] = pointers[k] + stored.indptr()[row_ids[k] + 1] - stored.indptr()[row_ids[k]];
  }
  py::array_t<float> data(pointers[n]);
  py::array_t<int32_t> indices(pointers[n]);
  float* values = data.mutable_data();
  int32_t* genes = indices.mutable_data();
  SharedFaults faults;
  {
    const py::gil_scoped_release unlocked;
    stored.read(row_ids, n, threads, cancel, nullptr, [&] { return ArraySink(pointers, values, genes, faults); });
  }
  return py::make_tuple(data, indices, indptr, faults_of(faults.found));
}

py::array_t<double> totals_of(const Window& window, const py::array& rows) {
  const int64_t* row_ids = vector_of<int64_t>(rows, "rows");
  py::array_t<double> totals(rows.size());
  double* out = totals.mutable_data();
  for (int64_t k = 0; k < rows.size(); ++k) out[k] = window.total(row_ids[k]);
  return totals;
}

}  // namespace

void bind_stored(py::module_& module) {
  py::register_exception<StoreError>(module, "StoreError", PyExc_OSError);
  py::register_exception<Cancelled>(module, "Cancelled");
  py::class_<Cancel>(module, "Cancel", "A wish to stop, for calls that run on another thread.")
      .def(py::init<>())
      .def("request", &Cancel::request)
      .def_property_readonly("requested", &Cancel::requested);
  py::class_<WindowMemory, std::shared_ptr<WindowMemory>>(module, "WindowMemory", kWindowMemoryDoc)
      .def(py::init([](int64_t segment_bytes, int64_t edge_bytes) {
             if (segment_bytes < 64 || segment_bytes > (int64_t{1} << 30) || segment_bytes % 64 != 0) {
               throw py::value_error("segment_bytes is " + std::to_string(segment_bytes) +
                                     ", and must be a multiple of 64, at most 2^30");
             }
             if (edge_bytes < 0) throw py::value_error("edge_bytes is " + std::to_string(edge_bytes) + ", below 0");
             return std::make_shared<WindowMemory>(static_cast<size_t>(segment_bytes), static_cast<size_t>(edge_bytes));
           }),
           py::arg("segment_bytes") = int64_t{1} << 21, py::arg("edge_bytes") = 0)
      .def_property_readonly("edge_bytes", [](const WindowMemory& self) { return self.edges.bytes(); });
  py::class_<ChunkedArray, std::shared_ptr<ChunkedArray>>(module, "ChunkedArray", kArrayDoc)
      .def(py::init(&make_array), py::arg("name"), py::arg("paths"), py::arg("file_of_chunk").noconvert(),
           py::arg("offsets").noconvert(), py::arg("sizes").noconvert(), py::arg("masks").noconvert(),
           py::arg("chunk_length"), py::arg("length"), py::arg("dtype"), py::arg("swapped"), py::arg("steps"),
           py::arg("fill_value") = 0.0)
      .def("read", &read_elements, "Bytes of elements begin..end-1 in this machine's order, uint8.", py::arg("begin"),
           py::arg("end"))
      .def_property_readonly("length", &ChunkedArray::length)
      .def_property_readonly("chunk_length", &ChunkedArray::chunk_length)
      .def_property_readonly("stored", &ChunkedArray::stored)
      .def_property_readonly("cheap_prefix", &ChunkedArray::cheap_prefix);
  py::class_<Window> window(module, "Window", kWindowDoc);
  window
      .def(py::init<int64_t, int64_t, std::shared_ptr<WindowMemory>>(), py::arg("n_rows"), py::arg("n_vars"),
           py::arg("memory"))
      .def_readonly("n_rows", &Window::n_rows)
      .def_readonly("n_vars", &Window::n_vars)
      .def_property_readonly("nbytes", &Window::bytes)
      .def("totals", &totals_of, "Sum of each row's values, float64.", py::arg("rows").noconvert())
      .def("put_rows", &put_rows, "As read_into, from CSR arrays.", py::arg("data").noconvert(),
           py::arg("indices").noconvert(), py::arg("indptr").noconvert(), py::arg("rows").noconvert(),
           py::arg("slots").noconvert(), py::arg("column_of_gene").noconvert() = py::none(), py::arg("n_vars"));
  bind_batches<Window>(window);
  py::class_<StoredCsr>(module, "StoredCsr", kStoredDoc)
      .def(py::init([](std::string place, std::shared_ptr<ChunkedArray> data, std::shared_ptr<ChunkedArray> indices,
                       const py::array& indptr, int64_t n_vars) {
             return std::make_unique<StoredCsr>(std::move(place), std::move(data), std::move(indices),
                                                vector_copy<int64_t>(indptr, "indptr"), n_vars);
           }),
           py::arg("place"), py::arg("data"), py::arg("indices"), py::arg("indptr").noconvert(), py::arg("n_vars"))
      .def_property_readonly(
          "cheap_prefix", [](const StoredCsr& self) { return self.data().cheap_prefix() && self.indices().cheap_prefix(); })
      .def("read", &read_rows, kReadDoc, py::arg("rows").noconvert(), py::arg("threads") = 1,
           py::arg("cancel").none(true) = nullptr)
      .def("read_into", &read_into, kReadIntoDoc, py::arg("window"), py::arg("rows").noconvert(),
           py::arg("slots").noconvert(), py::arg("column_of_gene").noconvert() = py::none(), py::arg("threads") = 1,
           py::arg("cancel").none(true) = nullptr);
}

}  // namespace scdd
