#include "rbar/core/parallel.hpp"
#include "support/catch.hpp"

#include <atomic>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

TEST_CASE("parallel_for visits every element once for any thread count") {
  for (const int threads : {1, 2, 5}) {
    rbar::set_num_threads(threads);
    for (const Eigen::Index count : {0, 1, 7, 64, 1001})
      for (const Eigen::Index chunk : {1, 3, 64, 5000}) {
        std::vector<int> visits(static_cast<std::size_t>(count), 0);
        rbar::parallel_for(count, chunk, [&](Eigen::Index begin, Eigen::Index end) {
          for (Eigen::Index i = begin; i < end; ++i) ++visits[static_cast<std::size_t>(i)];
        });
        CHECK(std::accumulate(visits.begin(), visits.end(), Eigen::Index{0}) == count);
        for (const int v : visits) CHECK(v == 1);
      }
  }
  rbar::set_num_threads(1);
}

TEST_CASE("parallel_for runs thousands of small jobs, nested ones and jobs of two callers") {
  rbar::set_num_threads(3);
  std::atomic<long> sum{0};
  const auto job = [&] {
    for (int repeat = 0; repeat < 2000; ++repeat)
      rbar::parallel_for(4, 1, [&](Eigen::Index, Eigen::Index) {
        rbar::parallel_for(3, 1, [&](Eigen::Index begin, Eigen::Index end) { sum += end - begin; });
      });
  };
  std::thread other(job);
  job();
  other.join();
  CHECK(sum == 2 * 2000 * 4 * 3);
  rbar::set_num_threads(1);
}

TEST_CASE("parallel_steps visits every index of every step once, and a step may wait for those before it") {
  for (const int threads : {1, 2, 5, 16}) {
    rbar::set_num_threads(threads);
    for (const Eigen::Index steps : {0, 1, 2, 37})
      for (const Eigen::Index count : {0, 1, 3, 16, 41}) {
        INFO(threads << " threads, " << steps << " steps of " << count);
        std::vector<rbar::TaskCounter> rows(static_cast<std::size_t>(count));
        std::vector<Eigen::Index> visits(rows.size(), 0), sums(rows.size(), 0);
        rbar::parallel_steps(steps, count, [&](Eigen::Index step, Eigen::Index i) noexcept {
          // Its own row, and the one that another thread has: their last step, neither written meanwhile.
          const auto own = static_cast<std::size_t>(i), other = static_cast<std::size_t>((i + count / 2) % count);
          rows[own].wait_for(step);
          rows[other].wait_for(step);
          sums[own] += 1 + step;
          ++visits[own];
          rows[own].add();
        });
        for (const Eigen::Index v : visits) CHECK(v == steps);
        for (const Eigen::Index sum : sums) CHECK(sum == steps * (steps + 1) / 2);
      }
  }
  rbar::set_num_threads(1);
}

TEST_CASE("parallel_steps within a parallel job and beside another one goes in order") {
  rbar::set_num_threads(3);
  std::atomic<long> sum{0};
  const auto job = [&] {
    for (int repeat = 0; repeat < 300; ++repeat)
      rbar::parallel_for(4, 1, [&](Eigen::Index, Eigen::Index) {
        rbar::TaskCounter done;
        rbar::parallel_steps(3, 5, [&](Eigen::Index step, Eigen::Index) noexcept {
          done.wait_for(5 * step);
          ++sum;
          done.add();
        });
      });
  };
  std::thread other(job);
  job();
  other.join();
  CHECK(sum == 2 * 300 * 4 * 15);
  rbar::set_num_threads(1);
}

TEST_CASE("an exception in a chunk reaches the caller and the pool stays usable") {
  for (const int threads : {1, 4}) {
    rbar::set_num_threads(threads);
    CHECK_THROWS_AS(rbar::parallel_for(100, 1,
                                       [](Eigen::Index begin, Eigen::Index) {
                                         if (begin == 37) throw std::runtime_error("chunk 37");
                                       }),
                    std::runtime_error);
    int ran = 0;
    rbar::parallel_for(1, 1, [&](Eigen::Index, Eigen::Index) { ++ran; });
    CHECK(ran == 1);
  }
  rbar::set_num_threads(1);
  CHECK_THROWS_AS(rbar::set_num_threads(0), rbar::Error);
}

TEST_CASE("parallel_sum has the same bits for every thread count") {
  std::vector<double> values(100003);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = 1.0 / static_cast<double>(i + 1);
  const auto sum = [&] {
    return rbar::parallel_sum(static_cast<Eigen::Index>(values.size()), 100, [&](Eigen::Index begin, Eigen::Index end) {
      double part = 0;
      for (Eigen::Index i = begin; i < end; ++i) part += values[static_cast<std::size_t>(i)];
      return part;
    });
  };
  rbar::set_num_threads(1);
  const double reference = sum();
  CHECK(reference == Approx(12.090176).epsilon(1e-6));
  for (const int threads : {2, 3, 8}) {
    rbar::set_num_threads(threads);
    CHECK(sum() == reference);
  }
  rbar::set_num_threads(1);
}
