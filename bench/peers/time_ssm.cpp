// rbar's side of compare_ssm.py: Mamba's block, forward and backward. Reads x, dy [batch, tokens, d_model] and the
// layer's parameters from FOLDER as raw numbers of SCALAR, writes y, dx and grad.<parameter> beside them as
// rbar.<name>.raw, and prints one JSON line. `stepped` is the largest difference between y and the same tokens fed one
// by one, of the largest y.
#include "../support.hpp"

#include "rbar/nn/ssm.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

namespace {

using rbar::Index;

template <class T>
void read(const std::string& path, std::span<T> values) {
  std::ifstream file(path, std::ios::binary);
  file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(values.size_bytes()));
  rbar::require(file.good(), "time_ssm", path, "as many numbers as were asked for", "fewer");
}

template <class T>
void write(const std::string& path, std::span<T> values) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size_bytes()));
  rbar::require(file.good(), "time_ssm", path, "a complete write", "an error");
}

template <class T>
void run(const std::string& folder, Index batch, Index tokens, Index d_model, double budget) {
  rbar::Rng rng(1);
  rbar::SelectiveSSM<T> layer({.d_model = d_model}, rng);
  for (const auto& parameter : parameters_of(layer)) read(folder + parameter.name + ".raw", parameter.values());
  rbar::Tensor<T, 3> x(batch, tokens, d_model), dy(batch, tokens, d_model), y, dx;
  read(folder + "x.raw", rbar::elements(x));
  read(folder + "dy.raw", rbar::elements(dy));

  typename rbar::SelectiveSSM<T>::Cache cache;
  auto grad = zeros_like(layer);
  layer.forward(x, y, cache);
  layer.backward(dy, cache, dx, grad);
  write(folder + "rbar.y.raw", rbar::elements(y));
  write(folder + "rbar.dx.raw", rbar::elements(dx));
  for (const auto& parameter : parameters_of(grad))
    write(folder + "rbar.grad." + parameter.name + ".raw", parameter.values());

  typename rbar::SelectiveSSM<T>::State state;
  rbar::Tensor<T, 3> token(batch, Index(1), d_model), out;
  double stepped = 0, largest = 0;
  const auto raise = [](double& maximum, double value) {  // and stays NaN
    if (!(value <= maximum) && !std::isnan(maximum)) maximum = value;
  };
  for (Index t = 0; t < tokens; ++t) {
    for (Index b = 0; b < batch; ++b) std::copy_n(&x(b, t, 0), d_model, &token(b, 0, 0));
    layer.step(token, out, state);
    for (Index b = 0; b < batch; ++b)
      for (Index d = 0; d < d_model; ++d) {
        raise(stepped, std::abs(static_cast<double>(out(b, 0, d) - y(b, t, d))));
        raise(largest, std::abs(static_cast<double>(y(b, t, d))));
      }
  }
  stepped /= largest;
  rbar::require(std::isfinite(stepped), "time_ssm", "difference between stream and y", "a number", stepped);

  std::vector<double> forward, training;
  const double begin = rbar::bench::now();
  do {
    const double start = rbar::bench::now();
    layer.forward(x, y, cache);
    const double middle = rbar::bench::now();
    layer.backward(dy, cache, dx, grad);
    forward.push_back(middle - start);
    training.push_back(rbar::bench::now() - start);
  } while (rbar::bench::now() - begin < budget);
  std::printf("{\"name\": \"rbar %s, %s\", \"forward\": %.6g, \"training\": %.6g, \"stepped\": %.3g}\n",
              RBAR_VERSION_STRING, rbar::simd::architecture(), rbar::bench::median(forward),
              rbar::bench::median(training), stepped);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 8)
    return std::fputs("usage: time_ssm FOLDER float|double BATCH TOKENS D_MODEL THREADS SECONDS\n", stderr), 2;
  const std::string folder = std::string(argv[1]) + "/", scalar = argv[2];
  const Index batch = std::atoll(argv[3]), tokens = std::atoll(argv[4]), d_model = std::atoll(argv[5]);
  rbar::set_num_threads(std::max(1, std::atoi(argv[6])));
  const double budget = std::atof(argv[7]);
  if (scalar == "double")
    run<double>(folder, batch, tokens, d_model, budget);
  else
    run<float>(folder, batch, tokens, d_model, budget);
}
