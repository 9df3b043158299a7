#include "parallel.hpp"
#include "tile_schedule.hpp"
#include "token_batch.hpp"

namespace scdd {

namespace {

constexpr const char* kGatherDoc = R"(Chosen rows as packed gene tokens, in order of rank within each cell.

s = target_sum * x / total; genes are ranked by s / gene_scale, ties by the lower token.

Parameters
----------
data, indices, indptr : the matrix in CSR form, as rows of cells over n_vars genes; values finite and not negative
rows : int64 [B], rows in the order wanted; may repeat
token_of_gene : int32 [n_vars], token of each gene, -1 to drop it; the values of genes with one token are added
gene_scale : float32 [n_tokens], positive, what expression is divided by for ranking; None for 1
max_genes : how many of the highest ranked genes of each cell are kept
target_sum : what each row is scaled to; 0 leaves it as it is
log1p : whether values are log(1 + s), or s
logged : data is log1p already (pass target_sum=0, log1p=False); genes are ranked by expm1(x) / gene_scale
detected : int32 [B] or None, filled with the number of genes of each cell before max_genes
max_tokens : ValueError if all rows together have more; at most 2147483647, which cu_seqlens can hold
threads : at least 1

Returns
-------
genes int32 [T], values float32 [T], coordinates float32 [T] = log2(1 + rank), cu_seqlens int32 [B + 1],
totals float64 [B] over ALL genes. Explicit zeros are no tokens; a cell may have none)";

constexpr const char* kBinDoc = R"(The number of edges that are not above each value, int16.

Parameters
----------
values : float32 [T]
edges : float32 [E], ascending, at most 32767
threads : at least 1)";

constexpr const char* kTilesDoc = R"(Tiles of packed segments, as scdd.data.loading.schedule describes them.

Parameters
----------
starts : int64 [S + 1], where each segment starts; rises from 0 to the number of rows, at most 2147483647
tile_rows : at least 1

Returns
-------
tiles int32 [M, 6], segments int32 [T])";

// Which bin each value falls into: the number of edges that are not above it. Edges ascend.
void bin_values(const float* values, int64_t n, const float* edges, int64_t n_edges, int16_t* bins,
                int64_t threads) {
  parallel_ranges(n, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* low = edges;  // halving without a branch, as bins are as good as random
      for (int64_t size = n_edges; size > 0;) {
        const int64_t half = (size + 1) / 2;
        low += low[half - 1] <= values[i] ? half : 0;
        size -= half;
      }
      bins[i] = static_cast<int16_t>(low - edges);
    }
  });
}

py::tuple gather_tokens_py(const py::array& data, const py::array& indices, const py::array& indptr,
                           const py::array& rows, const py::array& token_of_gene,
                           const std::optional<py::array>& gene_scale, int64_t max_genes, double target_sum, bool log1p,
                           bool logged, const std::optional<py::array>& detected, int64_t max_tokens, int64_t threads) {
  vector_of<int32_t>(token_of_gene, "token_of_gene");
  return dispatch_csr(data, indices, indptr, token_of_gene.size(), [&](const auto& matrix) {
    return token_batch(ArrayRows(matrix), rows, token_of_gene, gene_scale, max_genes, target_sum, log1p, logged,
                       detected, max_tokens, threads);
  });
}

py::array bin_values_py(const py::array& values, const py::array& edges, int64_t threads) {
  const float* x = vector_of<float>(values, "values");
  const float* edge = vector_of<float>(edges, "edges");
  require_threads(threads);
  if (edges.size() > INT16_MAX) {
    throw py::value_error("edges has " + std::to_string(edges.size()) + " values, and may have 32767: bins are int16");
  }
  for (int64_t k = 0; k < edges.size(); ++k) {
    if (!(edge[k] >= edge[k > 0 ? k - 1 : 0])) {
      throw py::value_error("edges[" + std::to_string(k) + "] is " + std::to_string(edge[k]) +
                            "; edges must ascend and not be NaN");
    }
  }
  py::array_t<int16_t> bins(values.size());
  int16_t* out = bins.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    bin_values(x, values.size(), edge, edges.size(), out, threads);
  }
  return bins;
}

py::tuple tile_schedule_py(const py::array& starts, int64_t tile_rows) {
  const int64_t* given = vector_of<int64_t>(starts, "starts");
  // A copy: outputs are as large as the numbers say that have been checked, whoever changes the array meanwhile.
  const std::vector<int64_t> checked(given, given + starts.size());
  const int64_t* begins = checked.data();
  if (tile_rows < 1 || tile_rows > INT32_MAX) {
    throw py::value_error("tile_rows is " + std::to_string(tile_rows) + ", and must lie in 1..2147483647");
  }
  const int64_t n = starts.size() - 1;
  if (n < 0 || n > INT32_MAX || begins[0] != 0 || begins[n] > INT32_MAX || !std::is_sorted(begins, begins + n + 1)) {
    throw py::value_error("starts must rise from 0 to at most 2147483647");
  }
  std::vector<TileGroup> groups;
  int64_t n_tiles = 0;
  {
    const py::gil_scoped_release unlocked;
    groups = tile_groups(begins, n, tile_rows);
    for (const TileGroup& group : groups) n_tiles += group.n_tiles(tile_rows);
  }
  py::array_t<int32_t> tiles(std::vector<py::ssize_t>{n_tiles, 6});
  py::array_t<int32_t> segments = BlockPool::shared().array<int32_t>(begins[n]);
  int32_t* out_tiles = tiles.mutable_data();
  int32_t* out_segments = segments.mutable_data();
  {
    const py::gil_scoped_release unlocked;
    write_tiles(groups, tile_rows, out_tiles);
    write_segments(begins, n, out_segments);
  }
  return py::make_tuple(tiles, segments);
}

}  // namespace

void bind_tokens(py::module_& module) {
  module.def("gather_tokens", &gather_tokens_py, kGatherDoc, py::arg("data").noconvert(),
             py::arg("indices").noconvert(), py::arg("indptr").noconvert(), py::arg("rows").noconvert(),
             py::arg("token_of_gene").noconvert(), py::arg("gene_scale").noconvert() = py::none(),
             py::arg("max_genes") = 2046, py::arg("target_sum") = 1e4, py::arg("log1p") = true,
             py::arg("logged") = false, py::arg("detected").noconvert() = py::none(),
             py::arg("max_tokens") = static_cast<int64_t>(INT32_MAX), py::arg("threads") = 1);
  module.def("tile_schedule", &tile_schedule_py, kTilesDoc, py::arg("starts").noconvert(), py::arg("tile_rows"));
  module.def("bin_values", &bin_values_py, kBinDoc, py::arg("values").noconvert(), py::arg("edges").noconvert(),
             py::arg("threads") = 1);
}

}  // namespace scdd
