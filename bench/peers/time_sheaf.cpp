// rbar's side of compare_sheaf.py: dense sheaf attention of given queries, keys and values, the squared norms of the
// keys included. Reads query, key and value from FOLDER, raw fp32 [tokens, heads, head_dim], writes what comes out
// beside them as full.f32 and causal.f32, and prints one JSON line.
#include "../support.hpp"

#include "rbar/attention/engine.hpp"
#include "rbar/sheaf/sheaf_score.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>

namespace {

using rbar::Index;
using rbar::Tensor;

Tensor<float, 3> read(const std::string& path, Index tokens, Index width) {
  Tensor<float, 3> tensor(1, tokens, width);
  std::ifstream file(path, std::ios::binary);
  file.read(reinterpret_cast<char*>(tensor.data()), static_cast<std::streamsize>(sizeof(float)) * tensor.size());
  rbar::require(file.good(), "time_sheaf", path, "as many numbers as were asked for", "fewer");
  return tensor;
}

void write(const std::string& path, const Tensor<float, 3>& tensor) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(tensor.data()), static_cast<std::streamsize>(sizeof(float)) * tensor.size());
  rbar::require(file.good(), "time_sheaf", path, "a complete write", "an error");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) return std::fputs("usage: time_sheaf FOLDER TOKENS HEADS HEAD_DIM THREADS SECONDS\n", stderr), 2;
  const std::string folder = argv[1];
  const Index tokens = std::atoll(argv[2]), heads = std::atoll(argv[3]), dim = std::atoll(argv[4]);
  rbar::set_num_threads(std::max(1, std::atoi(argv[5])));
  const double budget = std::atof(argv[6]);

  const auto query = read(folder + "/query.f32", tokens, heads * dim);
  const auto key = read(folder + "/key.f32", tokens, heads * dim);
  const auto value = read(folder + "/value.f32", tokens, heads * dim);
  const std::vector<float> beta(static_cast<std::size_t>(heads),
                                static_cast<float>(0.5 / std::sqrt(static_cast<double>(dim))));
  Tensor<float, 2> norms(tokens, heads);
  Tensor<float, 3> full(1, tokens, heads * dim), causal(1, tokens, heads * dim);
  const auto run = [&](const auto& mask, Tensor<float, 3>& output) {
    square_norms(rbar::heads_view(key, heads), norms.data());
    rbar::attend<float>(rbar::heads_view(query, heads), rbar::heads_view(key, heads), rbar::heads_view(value, heads),
                        rbar::SheafScore<float>{beta.data(), norms.data(), heads}, mask,
                        rbar::heads_view(output, heads));
  };
  const auto timed = [](auto&& body) {
    const double start = rbar::bench::now();
    body();
    return rbar::bench::now() - start;
  };
  run(rbar::FullMask{}, full);
  run(rbar::CausalMask{}, causal);
  std::vector<double> full_seconds, causal_seconds;
  double peak = 0;
  const double begin = rbar::bench::now();
  do {
    peak = std::max(peak, rbar::bench::fma_peak<float>());
    full_seconds.push_back(timed([&] { run(rbar::FullMask{}, full); }));
    causal_seconds.push_back(timed([&] { run(rbar::CausalMask{}, causal); }));
  } while (rbar::bench::now() - begin < budget);
  write(folder + "/full.f32", full);
  write(folder + "/causal.f32", causal);
  std::printf("{\"name\": \"rbar %s, %s\", \"seconds\": {\"full\": %.6g, \"causal\": %.6g}, \"fma_peak\": %.4g}\n",
              RBAR_VERSION_STRING, rbar::simd::architecture(), rbar::bench::median(full_seconds),
              rbar::bench::median(causal_seconds), peak);
}
