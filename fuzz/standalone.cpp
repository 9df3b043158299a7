// A driver for compilers without libFuzzer: replays a corpus, then mutates it for some seconds, always alike.
// usage: target SECONDS FOLDER...
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" void __sanitizer_set_death_callback(void (*)()) __attribute__((weak));

namespace {

using Input = std::vector<uint8_t>;

Input current;  // what is written down when the target dies

void write_down() {
  std::ofstream("crash-input", std::ios::binary)
      .write(reinterpret_cast<const char*>(current.data()), static_cast<std::streamsize>(current.size()));
  std::fprintf(stderr, "the input was written to crash-input\n");
}

std::vector<Input> read_corpus(int count, char** folders) {
  std::vector<std::filesystem::path> paths;
  for (int i = 0; i < count; ++i) {
    for (const auto& entry : std::filesystem::directory_iterator(folders[i])) {
      if (entry.is_regular_file()) paths.push_back(entry.path());
    }
  }
  std::sort(paths.begin(), paths.end());
  std::vector<Input> corpus;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return corpus;
}

class Mutator {
 public:
  explicit Mutator(const std::vector<Input>& corpus) : corpus_(corpus) {}

  Input next() {
    Input input = corpus_[below(corpus_.size())];
    for (size_t n = 1 + below(4); n > 0; --n) change(input);
    return input;
  }

 private:
  size_t below(size_t n) { return n == 0 ? 0 : random_() % n; }

  void change(Input& input) {
    static constexpr uint8_t kTelling[] = {0x00, 0x01, 0x7f, 0x80, 0xfe, 0xff};
    // Headers come first, and decide the most.
    const size_t at = below(2) != 0 ? below(input.size()) : below(std::min<size_t>(input.size(), 48));
    switch (input.empty() ? 3 : below(6)) {
      case 0: input[at] ^= static_cast<uint8_t>(1u << below(8)); break;
      case 1: input[at] = static_cast<uint8_t>(random_()); break;
      case 2: input[at] = kTelling[below(sizeof kTelling)]; break;
      case 3:
        input.insert(input.begin() + static_cast<ptrdiff_t>(at), 1 + below(16), static_cast<uint8_t>(random_()));
        break;
      case 4: input.resize(below(input.size() + 1)); break;
      default: {  // the end of another
        const Input& other = corpus_[below(corpus_.size())];
        const size_t from = below(other.size());
        input.resize(at);
        input.insert(input.end(), other.begin() + static_cast<ptrdiff_t>(from), other.end());
      }
    }
  }

  const std::vector<Input>& corpus_;
  std::mt19937_64 random_{1};
};

void run(Input input) {
  current = std::move(input);
  LLVMFuzzerTestOneInput(current.data(), current.size());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s SECONDS FOLDER...\n", argv[0]);
    return 2;
  }
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(write_down);
  const std::vector<Input> corpus = read_corpus(argc - 2, argv + 2);
  if (corpus.empty()) {
    std::fprintf(stderr, "%s holds no files\n", argv[2]);
    return 2;
  }
  for (const Input& input : corpus) run(input);
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(std::atof(argv[1]));
  Mutator mutator(corpus);
  size_t runs = corpus.size();
  for (; Clock::now() < end; ++runs) run(mutator.next());
  std::printf("%zu runs\n", runs);
}
