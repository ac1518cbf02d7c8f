// What a block-sparse pass did to one head of one sequence: how much was left out, what that was worth, and a picture.
// For looking at, not for running along: the masses take every pair's energy, O(tokens²·dim).
#pragma once

#include "rbar/sheaf/block_sparse_plan.hpp"
#include "rbar/simd/energy.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace rbar {

struct PatternReport {
  Index queries = 0, keys = 0;
  double blocks_kept = 1;    // share of the blocks that rows could see
  double pairs_kept = 1;     // share of the (query, key) pairs, open chunks included
  double smallest_mass = 1;  // of the softmax that a row keeps
  double mean_mass = 1;
  double epsilon_achieved = 0;  // 2Δ, the largest: no row is further than this times max‖v‖ from the dense output
  std::vector<std::uint8_t> seen;  // [queries][keys]: 2 seen, 1 skipped, 0 not visible to begin with
};

// The arguments are those of the pass that made the plan. Errors: no such sequence or head, a plan that saw other
// queries or, as after a dense pass, none.
template <class T>
PatternReport pattern_report(const BlockSparsePlan<T>& plan, const HeadsView<const T>& query,
                             const HeadsView<const T>& key, const SheafScore<T>& score, const AttentionMask& mask,
                             Index batch, Index head) {
  require(batch >= 0 && batch < query.batch, "pattern_report", "batch", "a sequence", batch);
  require(head >= 0 && head < query.heads, "pattern_report", "head", "a head of the queries", head);
  require(plan.rows >= query.first_row(batch) + query.count(batch) && plan.heads == query.heads, "pattern_report",
          "plan", "that of a sparse pass over these queries", plan.rows);
  PatternReport report;
  const Index kv_head = head / (query.heads / key.heads);
  const SequencePair pair{batch, query.count(batch), key.count(batch), query.first_row(batch), key.first_row(batch)};
  const OpenChunkMask near{mask, plan.chunk};
  report.queries = pair.queries;
  report.keys = pair.keys;
  report.seen.assign(static_cast<std::size_t>(pair.queries * pair.keys), 0);
  const double beta = static_cast<double>(score.beta[head]);
  double visible_blocks = 0, kept_blocks = 0, visible_pairs = 0, kept_pairs = 0, mass_sum = 0;
  std::vector<double> energy(static_cast<std::size_t>(pair.keys));
  for (Index i = 0; i < pair.queries; ++i) {
    const RowOutcome& outcome = plan.outcomes.data()[(pair.query_row + i) * query.heads + head];
    std::uint8_t* seen = report.seen.data() + i * pair.keys;
    const KeyRange open = near.keys(pair, head, i);
    std::fill_n(seen, open.end, std::uint8_t{1});
    for (Index j = open.begin; j < open.end; ++j) seen[j] = 2;
    plan.for_each_far_key(batch, head, pair.query_row + i, [&](Index j) { seen[j] = 2; });
    double least = std::numeric_limits<double>::infinity(), total = 0, kept = 0;
    for (Index j = 0; j < open.end; ++j) {
      energy.data()[j] = simd::residual_energy(query.at(batch, head, i), key.at(batch, kv_head, j), key.dim);
      least = std::min(least, energy.data()[j]);
    }
    for (Index j = 0; j < open.end; ++j) {
      const double weight = std::exp(-beta * (energy.data()[j] - least));
      total += weight;
      if (seen[j] == 2) kept += weight, kept_pairs += 1;
    }
    const double mass = total > 0 ? kept / total : 1;
    report.smallest_mass = std::min(report.smallest_mass, mass);
    mass_sum += mass;
    visible_pairs += static_cast<double>(open.end);
    visible_blocks += outcome.visible;
    kept_blocks += outcome.visible - outcome.skipped;
    report.epsilon_achieved = std::max(report.epsilon_achieved, 2.0 * static_cast<double>(outcome.share_bound));
  }
  if (visible_blocks > 0) report.blocks_kept = kept_blocks / visible_blocks;
  if (visible_pairs > 0) report.pairs_kept = kept_pairs / visible_pairs;
  if (pair.queries > 0) report.mean_mass = mass_sum / static_cast<double>(pair.queries);
  return report;
}

// Queries down, keys across, `size` pixels at most either way: black seen, light grey skipped, white not visible.
// 8-bit grey values, row by row.
struct PatternPicture {
  Index width = 0, height = 0;
  std::vector<std::uint8_t> grey;
};
inline PatternPicture pattern_picture(const PatternReport& report, Index size = 512) {
  require(size >= 1, "pattern_picture", "size", "at least 1", size);
  PatternPicture picture{std::min(report.keys, size), std::min(report.queries, size), {}};
  for (Index y = 0; y < picture.height; ++y)
    for (Index x = 0; x < picture.width; ++x) {
      const Index top = y * report.queries / picture.height, bottom = (y + 1) * report.queries / picture.height;
      const Index left = x * report.keys / picture.width, right = (x + 1) * report.keys / picture.width;
      Index ink = 0;
      for (Index i = top; i < bottom; ++i)
        for (Index j = left; j < right; ++j) {
          const std::uint8_t seen = report.seen.data()[i * report.keys + j];
          ink += seen == 2 ? 255 : seen == 1 ? 40 : 0;
        }
      picture.grey.push_back(static_cast<std::uint8_t>(255 - ink / ((bottom - top) * (right - left))));
    }
  return picture;
}

// A binary portable greymap.
inline std::string pattern_pgm(const PatternPicture& picture) {
  std::string file = "P5\n" + std::to_string(picture.width) + " " + std::to_string(picture.height) + "\n255\n";
  for (const std::uint8_t grey : picture.grey) file.push_back(static_cast<char>(grey));
  return file;
}

// One rectangle for every run of equal pixels.
inline std::string pattern_svg(const PatternPicture& picture) {
  const std::string width = std::to_string(picture.width), height = std::to_string(picture.height);
  std::string file = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + width + " " + height +
                     "\" shape-rendering=\"crispEdges\"><rect width=\"" + width + "\" height=\"" + height +
                     "\" fill=\"#fff\"/>\n";
  for (Index y = 0; y < picture.height; ++y)
    for (Index x = 0, end; x < picture.width; x = end) {
      const std::uint8_t* row = picture.grey.data() + y * picture.width;
      for (end = x + 1; end < picture.width && row[end] == row[x];) ++end;
      if (row[x] == 255) continue;
      const std::string grey = std::to_string(row[x]);
      file += "<rect x=\"" + std::to_string(x) + "\" y=\"" + std::to_string(y) + "\" width=\"" +
              std::to_string(end - x) + "\" height=\"1\" fill=\"rgb(" + grey + "," + grey + "," + grey + ")\"/>\n";
    }
  return file + "</svg>\n";
}

}  // namespace rbar
