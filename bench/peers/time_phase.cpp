// rbar's side of compare_phase.py: PhaseAttention forward and backward, the angles read out raw. Reads the input x, the
// gradient dy [tokens, d_model] and the layer's parameters from FOLDER as raw fp32, writes y, the final angles, dx and
// the parameters' gradients beside them as WAY.NAME.f32, and prints one JSON line. WAY: `pairs` is the coupling of the
// package (all positions, repelling), `prefix` this library's (positions so far, attracting).
#include "../support.hpp"

#include "rbar/kuramoto/phase_attention.hpp"

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

#include <sys/resource.h>

namespace {

using rbar::Index;

void read(const std::string& path, float* data, Index count) {
  std::ifstream file(path, std::ios::binary);
  file.read(reinterpret_cast<char*>(data), static_cast<std::streamsize>(sizeof(float)) * count);
  rbar::require(file.good(), "time_phase", path, "as many numbers as were asked for", "fewer");
}

void write(const std::string& path, const float* data, Index count) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(sizeof(float)) * count);
  rbar::require(file.good(), "time_phase", path, "a complete write", "an error");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 9)
    return std::fputs("usage: time_phase FOLDER WAY TOKENS D_MODEL HEADS OSCILLATORS THREADS SECONDS\n", stderr), 2;
  const std::string folder = std::string(argv[1]) + "/", way = argv[2];
  const Index tokens = std::atoll(argv[3]);
  rbar::PhaseAttentionConfig config;
  config.d_model = std::atoll(argv[4]);
  config.kuramoto.n_heads = std::atoll(argv[5]);
  config.kuramoto.n_oscillators = std::atoll(argv[6]);
  config.readout = rbar::PhaseReadout::raw;
  if (way == "pairs") {
    config.kuramoto.coupling = rbar::Coupling::reference;
    config.kuramoto.causality = rbar::Causality::reference;
  }
  rbar::set_num_threads(std::max(1, std::atoi(argv[7])));
  const double budget = std::atof(argv[8]);

  rbar::Rng rng(1);
  rbar::PhaseAttention<float> layer(config, rng), grad = rbar::zeros_like(layer);
  for (const auto& parameter : rbar::parameters_of(layer))
    read(folder + std::string(parameter.name) + ".f32", parameter.data, parameter.size);
  rbar::Tensor<float, 3> x(1, tokens, config.d_model), dy = x, y, dx;
  read(folder + "x.f32", x.data(), x.size());
  read(folder + "dy.f32", dy.data(), dy.size());

  rbar::PhaseAttention<float>::Cache cache;
  std::vector<double> seconds;
  double peak = 0;
  const double begin = rbar::bench::now();
  do {
    if (!seconds.empty()) peak = std::max(peak, rbar::bench::fma_peak<float>());
    rbar::set_zero(grad);
    const double start = rbar::bench::now();
    layer.forward(x, y, cache);
    layer.backward(dy, cache, dx, grad);
    seconds.push_back(rbar::bench::now() - start);
  } while (seconds.size() < 3 || (seconds.size() < 100 && rbar::bench::now() - begin < budget));
  seconds.erase(seconds.begin());  // its buffers had to grow

  const std::string out = folder + way + ".";
  write(out + "y.f32", y.data(), y.size());
  write(out + "angles.f32", cache.angles.data(), cache.angles.size());
  write(out + "dx.f32", dx.data(), dx.size());
  for (const auto& parameter : rbar::parameters_of(grad))
    write(out + std::string(parameter.name) + ".f32", parameter.data, parameter.size);
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::printf("{\"name\": \"rbar %s, %s\", \"seconds\": %.6g, \"fma_peak\": %.4g, \"resident\": %.6g}\n",
              RBAR_VERSION_STRING, rbar::simd::architecture(), rbar::bench::median(seconds), peak,
              static_cast<double>(usage.ru_maxrss) * 1024);
}
