// Hostile CSR arrays, windows, chunk tables and files, as far as the batches that are made of them: sound results, or
// one of scdd's own errors; and the same result by every way there is to it.
// sources: csrc/codec*.cpp
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gather_csr.hpp"
#include "gather_dense.hpp"
#include "stored_csr.hpp"
#include "tokens.hpp"
#include "window.hpp"

namespace {

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

// The input as numbers; zeros after its end.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}

  uint8_t byte() { return at_ < end_ ? *at_++ : 0; }

  // Mostly small, now and then what arithmetic breaks on.
  int64_t number() {
    static constexpr int64_t kTelling[] = {-1,        INT64_MIN,     INT64_MAX,     INT32_MAX,   INT32_MIN,
                                           65535,     65536,         1LL << 31,     1LL << 32,   1LL << 50,
                                           1LL << 59, INT64_MAX / 2, INT64_MAX / 8, 1LL << 62,   -2};
    const int64_t first = byte();
    if (first < 0xe0) return first;
    if (first < 0xf0) return (first - 0xe0) << 8 | byte();
    if (first < 0xff) return kTelling[first - 0xf0];
    uint64_t bits = 0;
    for (int k = 0; k < 8; ++k) bits |= static_cast<uint64_t>(byte()) << 8 * k;
    return static_cast<int64_t>(bits);
  }

  std::vector<uint8_t> rest() { return {std::exchange(at_, end_), end_}; }

 private:
  const uint8_t *at_, *end_;
};

// What is asked of the rows. The border to Python has checked all of this but the rows themselves.
struct Question {
  uint8_t options, column_step, narrow;
  int64_t n_columns, max_genes, threads;
  std::vector<int64_t> rows;

  explicit Question(Input& input)
      : options(input.byte()), column_step(input.byte()), narrow(input.byte()), n_columns(input.byte() % 40),
        max_genes(1 + input.byte() % 40), threads(options & 128 ? INT64_MAX / 2 + 1 : 1 + (options >> 5 & 1)) {
    const size_t given = input.byte() % 9, times = 1 + input.byte() % 16;
    for (size_t k = 0; k < given; ++k) rows.push_back(input.number());
    for (size_t k = given; k < given * times; ++k) rows.push_back(rows[k - given]);
  }

  bool log1p() const { return options & 1; }
  double target_sum() const { return options & 2 ? 1e4 : 0; }
  bool all_genes() const { return options & 4; }
  bool standardised() const { return options & 8; }
  bool scaled() const { return options & 16; }
  bool logged() const { return options & 64; }
  int64_t n() const { return static_cast<int64_t>(rows.size()); }

  std::vector<int32_t> columns(int64_t n_vars) const {
    std::vector<int32_t> found(static_cast<size_t>(n_vars));
    for (int64_t g = 0; g < n_vars; ++g) {
      found[g] = static_cast<int32_t>((g * column_step + g / 7) % (n_columns + 1)) - 1;
    }
    return found;
  }
};

// All that is made of one question; every vector has exactly the promised size, so that a sanitizer sees one too many.
struct Answer {
  bool failed = false;
  std::vector<float> dense, data;
  std::vector<int32_t> indices;
  std::vector<int64_t> indptr;
  std::vector<double> totals;
};

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  const auto alike = [](T x, T y) { return x == y || (x != x && y != y); };
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), alike);
}

// f, or one of scdd's own errors: then false.
template <class F>
bool succeeds(const F& f) {
  try {
    f();
    return true;
  } catch (const std::out_of_range&) {
  } catch (const std::invalid_argument&) {
  } catch (const scdd::StoreError&) {
  }
  return false;
}

template <class Out, class Rows>
std::vector<Out> dense_of(const Rows& source, const Question& ask, const std::vector<int32_t>& columns,
                          bool standardise, std::vector<double>& totals) {
  const auto width = static_cast<size_t>(ask.n_columns);
  const std::vector<float> mean(width, 0.5f), inverse_std(width, 2.0f);
  const scdd::DenseTransform transform{ask.target_sum(), ask.log1p(), standardise ? mean.data() : nullptr,
                                       standardise ? inverse_std.data() : nullptr, standardise ? 3.0f : 0.0f};
  std::vector<Out> out(ask.rows.size() * width);
  totals.resize(ask.rows.size());
  scdd::gather_dense(source, ask.rows.data(), ask.n(), columns.data(), ask.n_columns, transform, false, totals.data(),
                     out.data(), ask.threads);
  return out;
}

template <class Rows>
void check_sparse(const Rows& source, const Question& ask, const std::vector<int32_t>* columns, Answer& answer) {
  const scdd::CsrGather<Rows> gather{source,      ask.rows.data(), ask.n(), columns ? columns->data() : nullptr,
                                     {ask.target_sum(), ask.log1p()}, ask.threads};
  answer.indptr.resize(ask.rows.size() + 1);
  gather.count(answer.indptr.data());
  answer.data.resize(static_cast<size_t>(answer.indptr.back()));
  answer.indices.resize(answer.data.size());
  std::vector<double> totals(ask.rows.size());
  const int64_t size = gather.fill(answer.indptr.data(), answer.data.data(), answer.indices.data(), totals.data());
  require(size <= static_cast<int64_t>(answer.data.size()) && size == answer.indptr.back(), "sizes disagree");
  answer.data.resize(static_cast<size_t>(size));
  answer.indices.resize(static_cast<size_t>(size));
  const int64_t width = columns ? ask.n_columns : source.n_vars;
  for (int64_t i = 0; i < ask.n(); ++i) {
    for (int64_t p = answer.indptr[i]; p < answer.indptr[i + 1]; ++p) {
      const int64_t before = p > answer.indptr[i] ? answer.indices[p - 1] : -1;
      require(before < answer.indices[p] && answer.indices[p] < width, "a sparse row is out of order");
    }
  }
  require(same(totals, answer.totals), "sparse and dense totals differ");
}

// The sparse batch, spread out.
void check_alike(const Question& ask, const Answer& answer) {
  std::vector<float> spread(answer.dense.size(), 0.0f);
  for (int64_t i = 0; i < ask.n(); ++i) {
    for (int64_t p = answer.indptr[i]; p < answer.indptr[i + 1]; ++p) {
      spread[i * ask.n_columns + answer.indices[p]] = answer.data[p];
    }
  }
  require(same(spread, answer.dense), "sparse and dense values differ");
}

template <class Rows>
void check_tokens(const Rows& source, const Question& ask, const std::vector<int32_t>& tokens) {
  const std::vector<float> scale(static_cast<size_t>(ask.n_columns), 0.3f);
  const bool logged = ask.logged();
  bool same = true;
  for (size_t gene = 0; gene < tokens.size(); ++gene) same &= tokens[gene] == static_cast<int32_t>(gene);
  const scdd::TokenPlan plan{tokens.data(),
                             ask.scaled() ? scale.data() : nullptr,
                             ask.max_genes,
                             logged ? 0 : ask.target_sum(),
                             !logged && ask.log1p(),
                             logged,
                             ask.narrow & 4 ? 50 : INT32_MAX,
                             ask.n_columns,
                             same};
  std::vector<int32_t> cu_seqlens(ask.rows.size() + 1), detected(ask.rows.size());
  std::vector<double> totals(ask.rows.size());
  static scdd::TokenMemory<scdd::RowScratch> memory;  // as in a thread: whatever came before must not matter
  scdd::TokenGather<Rows, scdd::RowScratch> gather(source, ask.rows.data(), ask.n(), plan, memory, ask.threads);
  const auto room = static_cast<size_t>(gather.measure());
  std::vector<int32_t> found_genes(room);
  std::vector<float> found_values(room);
  const auto n = static_cast<size_t>(
      gather.select(cu_seqlens.data(), totals.data(), detected.data(), found_genes.data(), found_values.data()));
  require(n <= room, "there are more tokens than there was room for");
  std::vector<int32_t> genes(n);
  std::vector<float> values(n), coordinates(n);
  gather.write(cu_seqlens.data(), found_genes.data(), found_values.data(), genes.data(), values.data(),
               coordinates.data());
  require(static_cast<size_t>(cu_seqlens.back()) == n, "token counts disagree");
  for (int64_t i = 0; i < ask.n(); ++i) {
    const int64_t size = cu_seqlens[i + 1] - cu_seqlens[i];
    require(size == std::min<int64_t>(detected[i], ask.max_genes), "a cell has another number of tokens");
    std::vector<int32_t> once(genes.data() + cu_seqlens[i], genes.data() + cu_seqlens[i + 1]);
    std::sort(once.begin(), once.end());
    require(std::adjacent_find(once.begin(), once.end()) == once.end(), "a cell names a gene twice");
    require(once.empty() || (once.front() >= 0 && once.back() < ask.n_columns), "a token lies outside");
  }
}

template <class Rows>
Answer answer_of(const Rows& source, const Question& ask) {
  const std::vector<int32_t> columns = ask.columns(source.n_vars);
  Answer answer;
  answer.failed = !succeeds([&] { answer.dense = dense_of<float>(source, ask, columns, false, answer.totals); });
  succeeds([&] { check_tokens(source, ask, columns); });
  Answer whole = answer;
  if (ask.all_genes()) succeeds([&] { check_sparse(source, ask, nullptr, whole); });
  const bool sparse = succeeds([&] { check_sparse(source, ask, &columns, answer); });
  require(sparse != answer.failed, "sparse and dense disagree about an error");
  if (answer.failed) return answer;
  check_alike(ask, answer);
  std::vector<double> totals;
  if (ask.standardised()) dense_of<float>(source, ask, columns, true, totals);
  if (ask.narrow & 1) dense_of<scdd::Half>(source, ask, columns, ask.standardised(), totals);
  if (ask.narrow & 2) dense_of<scdd::Brain>(source, ask, columns, ask.standardised(), totals);
  return answer;
}

// Everything that matters to a batch must survive the window's narrow forms.
void require_same(const Answer& a, const Answer& b) {
  require(a.failed == b.failed, "window and arrays disagree about an error");
  if (a.failed) return;
  require(same(a.dense, b.dense) && same(a.totals, b.totals), "window and arrays differ");
  require(same(a.data, b.data) && a.indices == b.indices && a.indptr == b.indptr, "window and arrays differ");
}

std::shared_ptr<scdd::WindowMemory> memory() {
  static const auto kept = std::make_shared<scdd::WindowMemory>(1 << 12, 1 << 12);  // rows of more than that exist too
  return kept;
}

// Every row in a window, the last one first.
template <class Rows>
bool fill(const Rows& source, scdd::Window& window) {
  return succeeds([&] {
    scdd::Window::Writer writer(window);
    scdd::RowScratch scratch;
    for (int64_t row = source.n_rows - 1; row >= 0; --row) {
      source.view(row, row - 1, scratch, [&](const auto* values, const auto* genes, int64_t n) {
        const std::vector<float> as_float(values, values + n);
        const std::vector<int32_t> as_int(genes, genes + n);
        writer.put(row, row, as_float.data(), as_int.data(), n);
      });
    }
  });
}

int64_t number_of_genes(Input& input) {
  static constexpr int64_t kTelling[] = {300, 65535, 65536, 65537};
  const int64_t n = input.byte();
  return n < 252 ? n : kTelling[n - 252];  // beyond 65536 the window needs wide genes
}

template <class Value>
Value value_of(Input& input) {
  if constexpr (std::is_floating_point_v<Value>) {
    static constexpr Value kTelling[] = {-1,          Value(-0.0), Value(0.5), Value(1e-40),
                                         Value(3e38), INFINITY,    NAN,        8388609};
    const uint8_t first = input.byte();
    if (first >= 0xf8) return kTelling[first - 0xf8];
    return static_cast<Value>(first < 0xd0 ? first : input.number());
  } else {
    return static_cast<Value>(input.number());
  }
}

template <class Value, class Index>
void fuzz_arrays(Input& input, const Question& ask) {
  const int64_t n_vars = number_of_genes(input);
  const bool honest = input.byte() % 4 != 0;
  std::vector<int64_t> indptr(1 + input.byte() % 12);
  for (int64_t& place : indptr) place = input.number();
  if (honest) {
    for (int64_t& place : indptr) place &= 63;
    indptr[0] = 0;
    std::partial_sum(indptr.begin(), indptr.end(), indptr.begin());
  }
  std::vector<Value> data(honest ? static_cast<size_t>(indptr.back()) : input.byte());
  std::vector<Index> indices(data.size());
  for (Value& value : data) value = value_of<Value>(input);
  for (Index& gene : indices) gene = static_cast<Index>(input.number());
  const auto n_rows = static_cast<int64_t>(indptr.size()) - 1, nnz = static_cast<int64_t>(data.size());
  const scdd::Csr<Value, Index> matrix{data.data(), indices.data(), {indptr.data(), n_rows, nnz}, n_vars};
  const scdd::ArrayRows source(matrix);
  const Answer answer = answer_of(source, ask);
  scdd::Window window(source.n_rows, n_vars, memory());
  const bool filled = fill(source, window);
  const Answer narrow = answer_of(window, ask);
  if (filled && std::is_same_v<Value, float>) require_same(answer, narrow);  // others are rounded before they are added
}

// A file of these bytes, that no folder ever shows.
class MemoryFile {
 public:
  MemoryFile() : handle_(::memfd_create("fuzz", MFD_CLOEXEC)) {}
  ~MemoryFile() { ::close(handle_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  void hold(const std::vector<uint8_t>& bytes) const {
    const auto size = static_cast<ssize_t>(bytes.size());
    require(::ftruncate(handle_, 0) == 0 && ::pwrite(handle_, bytes.data(), bytes.size(), 0) == size, "no memory file");
  }
  std::string path() const { return "/proc/self/fd/" + std::to_string(handle_); }

 private:
  int handle_;
};

struct ArrayPlan {
  scdd::ChunkTable table;
  scdd::Element element;
  bool swapped, by_zlib = false;
  double fill;
  std::vector<scdd::Step> steps;

  ArrayPlan(Input& input, int64_t length) {
    const uint8_t form = input.byte();
    element = static_cast<scdd::Element>(form % 11);
    swapped = form >= 128;
    const uint8_t oddness = input.byte();
    fill = oddness & 1 ? 1.5 : 0;
    table.length = oddness & 2 ? input.number() : length;
    table.chunk_length = input.number();
    const size_t n_steps = input.byte() % 4;
    for (size_t k = 0; k < n_steps; ++k) {
      const auto kind = static_cast<scdd::Kind>(input.byte() % scdd::kKinds);
      steps.push_back({kind, input.byte(), static_cast<int>(k)});
      by_zlib = by_zlib || kind == scdd::Kind::deflate || kind == scdd::Kind::gzip;
    }
    int64_t n_chunks = table.chunk_length > 0 && table.length > 0 ? (table.length - 1) / table.chunk_length + 1 : 0;
    n_chunks = std::min<int64_t>(n_chunks, 40) + (oddness & 4 ? 1 : 0);
    for (int64_t k = 0; k < n_chunks; ++k) {
      table.file.push_back(oddness & 8 ? static_cast<int32_t>(input.number()) : 0);
      table.offset.push_back(input.number());
      table.size.push_back(input.number());
      table.mask.push_back(oddness & 16 ? input.byte() : 0);
    }
    if (oddness & 32) table.mask.resize(table.mask.size() / 2);
  }

  std::shared_ptr<scdd::ChunkedArray> open(const std::shared_ptr<const scdd::Files>& files) const {
    return std::make_shared<scdd::ChunkedArray>("array", files, table, element, swapped, scdd::Pipeline(steps), fill);
  }

  // A table may honestly speak of gigabytes that are all fill value; this is about wrong tables, not large ones.
  bool moderate() const {
    const bool small_chunks = steps.empty() || table.chunk_length <= 1 << 14;
    return small_chunks && table.length <= 1 << 14;
  }
};

struct Entries {
  bool failed = true;
  std::vector<float> values;
  std::vector<int32_t> genes;
};

// Writes where the row pointers say; the vectors have exactly the size.
struct EntriesSink {
  Entries& entries;
  const int64_t* starts;

  void put(int64_t k, int64_t, const float* values, const int32_t* genes, int64_t n) {
    std::copy(values, values + n, entries.values.begin() + starts[k]);
    std::copy(genes, genes + n, entries.genes.begin() + starts[k]);
  }
};

Entries read(const scdd::StoredCsr& stored, const std::vector<int64_t>& rows, int64_t threads,
             scdd::ChunkEdges* edges = nullptr) {
  Entries entries;
  std::vector<int64_t> starts{0};
  entries.failed = !succeeds([&] {
    for (const int64_t row : rows) {
      if (scdd::outside(row, stored.n_rows)) scdd::fail_index("row outside");
      starts.push_back(starts.back() + stored.indptr()[row + 1] - stored.indptr()[row]);
    }
    entries.values.resize(static_cast<size_t>(starts.back()));
    entries.genes.resize(static_cast<size_t>(starts.back()));
    stored.read(rows.data(), static_cast<int64_t>(rows.size()), threads, nullptr, edges,
                [&] { return EntriesSink{entries, starts.data()}; });
  });
  return entries;
}

// A row alone, from the beginning of a chunk, is what it is among all others.
void check_alone(const scdd::StoredCsr& stored, const Entries& all, bool by_zlib) {
  for (int64_t row = 0; row < stored.n_rows; ++row) {
    const Entries alone = read(stored, {row}, 1);
    if (all.failed) continue;
    if (alone.failed && by_zlib) continue;  // zlib and libdeflate may differ in which malformed streams they accept
    require(!alone.failed, "a row fails alone, and not among all");
    const int64_t start = stored.indptr()[row];
    require(std::equal(alone.genes.begin(), alone.genes.end(), all.genes.begin() + start), "a row alone differs");
    require(alone.values.empty() ||
                std::memcmp(alone.values.data(), all.values.data() + start, 4 * alone.values.size()) == 0,
            "a row alone differs");
  }
}

// What one read keeps of rows in two chunks serves the next, and changes nothing.
void check_edges(const scdd::StoredCsr& stored, const Entries& all, const std::vector<int64_t>& some, size_t limit) {
  scdd::ChunkEdges edges(limit);
  std::vector<bool> first(static_cast<size_t>(stored.n_rows));
  for (const int64_t row : some) {
    if (!scdd::outside(row, stored.n_rows)) first[static_cast<size_t>(row)] = true;
  }
  for (const bool turn : {true, false, true}) {
    std::vector<int64_t> rows;
    for (int64_t row = 0; row < stored.n_rows; ++row) {
      if (first[static_cast<size_t>(row)] == turn) rows.push_back(row);
    }
    const Entries part = read(stored, rows, 1, &edges);
    require(edges.bytes() <= limit, "more is kept than allowed");
    if (part.failed) return;  // more of a chunk is decoded for the sake of others, and that may be what is damaged
    size_t at = 0;
    for (const int64_t row : rows) {
      const auto from = static_cast<size_t>(stored.indptr()[row]), until = static_cast<size_t>(stored.indptr()[row + 1]);
      for (size_t k = from; k < until; ++k, ++at) {
        require(part.genes[at] == all.genes[k], "a gene differs that was kept");
        require(std::memcmp(&part.values[at], &all.values[k], 4) == 0, "a value differs that was kept");
      }
    }
  }
}

void fuzz_stored(Input& input, const Question& ask) {
  const int64_t n_vars = input.number();
  const uint8_t oddness = input.byte();
  std::vector<int64_t> indptr(input.byte() % 24);
  for (int64_t& place : indptr) place = input.number();
  if (!(oddness & 1) && !indptr.empty()) {
    for (int64_t& place : indptr) place &= 255;
    indptr[0] = 0;
    std::partial_sum(indptr.begin(), indptr.end(), indptr.begin());
  }
  const int64_t length = indptr.empty() ? 0 : indptr.back();
  const ArrayPlan data(input, length), indices(input, length);
  static const MemoryFile file;
  file.hold(input.rest());

  std::optional<scdd::StoredCsr> stored;
  std::shared_ptr<const scdd::Files> files;
  const bool opened = succeeds([&] {
    files = std::make_shared<scdd::Files>(std::vector<std::string>(oddness & 2 ? 300 : 1, file.path()));
    stored.emplace("matrix", data.open(files), indices.open(files), indptr, n_vars);
  });
  if (!opened || !data.moderate() || !indices.moderate()) return;
  require(stored->n_rows == static_cast<int64_t>(indptr.size()) - 1 && n_vars >= 0, "an impossible matrix was opened");

  read(*stored, ask.rows, ask.threads);  // in any order, with any rows: an error or not
  std::vector<int64_t> every(static_cast<size_t>(stored->n_rows));
  std::iota(every.begin(), every.end(), 0);
  const Entries all = read(*stored, every, ask.threads);
  check_alone(*stored, all, data.by_zlib || indices.by_zlib);
  if (all.failed) return;
  check_edges(*stored, all, ask.rows, ask.narrow % 4 == 0 ? 300 : size_t{1} << 16);
  for (const int32_t gene : all.genes) require(!scdd::outside(gene, n_vars), "a gene outside was delivered");
  if (n_vars > 70000) return;
  const scdd::Csr<float, int32_t> matrix{
      all.values.data(), all.genes.data(), {indptr.data(), stored->n_rows, length}, n_vars};
  scdd::Window window(stored->n_rows, n_vars, memory());
  require(fill(scdd::ArrayRows(matrix), window), "checked rows do not fit the window");
  require_same(answer_of(scdd::ArrayRows(matrix), ask), answer_of(window, ask));
}

}  // namespace

// Layout: what to try; the question; then the arrays, or the tables and the file's bytes.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const uint8_t way = input.byte();
  const Question ask(input);
  switch (way % 8) {
    case 0: fuzz_arrays<float, int32_t>(input, ask); break;
    case 1: fuzz_arrays<double, int64_t>(input, ask); break;
    case 2: fuzz_arrays<uint16_t, uint16_t>(input, ask); break;
    case 3: fuzz_arrays<int64_t, int32_t>(input, ask); break;
    default: fuzz_stored(input, ask);
  }
  return 0;
}
