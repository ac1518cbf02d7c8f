// rbar's side of compare_training.py: trains the GPT-2 style transformer on random bytes and prints one JSON
// line. Arguments: threads, timed steps (after an untimed one).
#include "../support.hpp"
#include "../training_step.hpp"

#include <cstdio>
#include <cstdlib>

int main(int argc, char** argv) {
  if (argc != 3) return std::fputs("usage: train_standard THREADS STEPS\n", stderr), 2;
  rbar::set_num_threads(std::max(1, std::atoi(argv[1])));
  const int steps = std::max(1, std::atoi(argv[2]));
  constexpr rbar::Index batch = 8, length = 128;
  rbar::bench::TrainingStep<rbar::TransformerModel<float>> step(rbar::bench::six_layers(length), batch, length);
  double loss = step(), peak = 0;
  std::vector<double> seconds;
  for (int i = 0; i < steps; ++i) {
    peak = std::max(peak, rbar::bench::fma_peak<float>());
    const double start = rbar::bench::now();
    loss = step();
    seconds.push_back(rbar::bench::now() - start);
  }
  std::printf(
      "{\"name\": \"rbar %s, %s, %s\", \"parameters\": %lld, \"loss\": %.4f, \"median_s\": %.6f, \"best_s\": "
      "%.6f, \"fma_peak\": %.4g}\n",
      RBAR_VERSION_STRING, rbar::simd::architecture(), rbar::bench::compiler().c_str(),
      static_cast<long long>(step.parameters.size()), loss, rbar::bench::median(seconds),
      *std::min_element(seconds.begin(), seconds.end()), peak);
}
