// When do oscillators synchronise? Kuramoto's model for two densities of natural frequencies: R, how far they are
// synchronised, against the coupling K, with the K_c read off the curve and the theory's 2/(π g(0)).
//   critical_coupling [R_of_K.svg [OSCILLATORS]]
#include "rbar/audit/line_chart.hpp"
#include "rbar/kuramoto/simulate.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

int main(int argc, char** argv) {
  rbar::Index oscillators = 2048;
  if (argc > 2) {
    char* end = nullptr;
    oscillators = std::strtoll(argv[2], &end, 10);
    if (end == argv[2] || *end != '\0') oscillators = 0;
  }
  if (argc > 3 || oscillators < 2 || oscillators > 10'000'000)
    return std::fprintf(stderr, "critical_coupling [R_of_K.svg [OSCILLATORS]]: OSCILLATORS from 2 to 10000000\n"), 2;
  rbar::LineChart chart;
  chart.title = "Order parameter of " + std::to_string(oscillators) + " Kuramoto oscillators";
  chart.x_label = "coupling K";
  chart.y_label = "R, mean after burn-in";
  rbar::SimulationConfig config;
  config.n_steps = 2000;  // of 0.05
  config.burn_in = 1000;

  bool agrees = true;
  for (const auto shape : {rbar::FrequencyShape::lorentzian, rbar::FrequencyShape::gaussian}) {
    const rbar::FrequencyDensity density{.shape = shape};
    const double predicted = density.critical_coupling();
    const std::string name = rbar::name_of(shape);
    rbar::Rng rng(1);
    const auto frequencies = density.quantiles<float>(oscillators);
    const auto phases = rbar::random_phases<float>(oscillators, rng);
    std::vector<double> couplings;
    for (int i = 0; i <= 28; ++i) couplings.push_back(predicted * (0.4 + 0.05 * i));
    const auto points = rbar::coupling_sweep<float>(frequencies, phases, couplings, config);

    rbar::LineSeries measured{.name = name + ", simulated", .markers = true};
    rbar::LineSeries theory{.name = name + ", theory", .dashed = true};
    measured.group = theory.group = name;
    std::printf("%s frequencies of width 1\n      K      R  theory\n", name.c_str());
    for (const auto& point : points) {
      const double expected = density.order_parameter(point.coupling);
      std::printf("%7.3f %6.3f %7.3f  %s\n", point.coupling, point.order, expected,
                  std::string(static_cast<std::size_t>(40 * point.order), '#').c_str());
      measured.x.push_back(point.coupling);
      measured.y.push_back(point.order);
    }
    for (int i = 0; i <= 280; ++i) {
      theory.x.push_back(predicted * (0.4 + 0.005 * i));
      theory.y.push_back(density.order_parameter(theory.x.back()));
    }
    const double estimate = rbar::estimate_critical_coupling(points);
    std::printf("K_c from the curve %.3f, theory 2/(π g(0)) = %.3f\n\n", estimate, predicted);
    agrees = agrees && std::abs(estimate / predicted - 1) < 0.05;
    chart.vertical.push_back({predicted, "K_c " + name});
    chart.series.push_back(std::move(measured));
    chart.series.push_back(std::move(theory));
  }
  if (argc > 1) {
    std::ofstream file(argv[1]);
    file << rbar::line_chart_svg(chart);
    if (!file.flush()) return std::fprintf(stderr, "cannot write %s\n", argv[1]), 2;
  }
  return agrees ? 0 : 1;
}
