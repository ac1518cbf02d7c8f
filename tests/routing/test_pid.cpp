#include "rbar/routing/pid.hpp"

#include "support/catch.hpp"

#include <limits>

using rbar::PidConfig;
using rbar::PidController;

TEST_CASE("PID output is the textbook sum, clamped") {
  PidController pid(PidConfig{.proportional = 0.5,
                              .integral = 0.25,
                              .derivative = 2.0,
                              .base = 1.0,
                              .minimum = -10,
                              .maximum = 10,
                              .anti_windup = true});
  CHECK(pid.update(0.4) == Approx(1.0 + 0.5 * 0.4 + 0.25 * 0.4 + 2.0 * 0.4));
  CHECK(pid.preview(-0.2) == Approx(1.0 - 0.5 * 0.2 + 0.25 * 0.2 + 2.0 * (-0.2 - 0.4)));
  CHECK(pid.update(-0.2) == Approx(1.0 - 0.5 * 0.2 + 0.25 * 0.2 + 2.0 * (-0.2 - 0.4)));
  CHECK(pid.update(100) == 10.0);
  CHECK(pid.update(-100) == -10.0);
  pid.reset();
  CHECK(pid.update(0.4) == Approx(1.0 + 0.5 * 0.4 + 0.25 * 0.4 + 2.0 * 0.4));
}

TEST_CASE("anti-windup lets the controller answer as soon as the error turns") {
  const auto steps_to_leave_the_limit = [](bool anti_windup) {
    PidController pid(PidConfig{.proportional = 0.1,
                                .integral = 0.1,
                                .derivative = 0,
                                .base = 0,
                                .minimum = -1,
                                .maximum = 1,
                                .anti_windup = anti_windup});
    for (int i = 0; i < 200; ++i) CHECK(pid.update(1.0) <= 1.0);
    int steps = 1;
    while (pid.update(-1.0) == 1.0) ++steps;
    return steps;
  };
  CHECK(steps_to_leave_the_limit(true) == 1);
  CHECK(steps_to_leave_the_limit(false) > 100);
}

TEST_CASE("the integral drives the error of a static plant to zero") {
  PidController pid(PidConfig{.proportional = 0.2,
                              .integral = 0.3,
                              .derivative = 0.05,
                              .base = 0,
                              .minimum = -5,
                              .maximum = 5,
                              .anti_windup = true});
  double measured = 0;
  for (int i = 0; i < 200; ++i) measured = 0.7 * pid.update(1.3 - measured) + 0.2;
  CHECK(measured == Approx(1.3).epsilon(1e-6));
}

TEST_CASE("PID refuses what would poison its state") {
  PidController pid{PidConfig{}};
  CHECK_THROWS_AS(pid.update(std::numeric_limits<double>::quiet_NaN()), rbar::Error);
  CHECK_THROWS_AS(pid.update(std::numeric_limits<double>::infinity()), rbar::Error);
  CHECK(pid.integral == 0.0);
  CHECK_THROWS_AS(PidController(PidConfig{.minimum = 1, .maximum = 0}), rbar::Error);
  CHECK_THROWS_AS(PidController(PidConfig{.proportional = std::numeric_limits<double>::infinity()}), rbar::Error);
}
