// All parameters of a model seen as one long array, in the order of its visitor. Work over it is cut
// into equal chunks whatever the tensors' sizes, so a thousand small tensors cost what one large costs.
#pragma once

#include "rbar/core/parallel.hpp"
#include "rbar/core/parameters.hpp"

#include <algorithm>
#include <cmath>
#include <concepts>
#include <string_view>
#include <vector>

namespace rbar {

// Which parameters weight decay may shrink: those of rank 2 and more (weights and embeddings, not biases and norms),
// unless the layer has a rule of its own, which sees names as in a checkpoint:
//   static bool decays(std::string_view name, std::size_t rank)
template <class L>
bool weight_decays(std::string_view name, std::size_t rank) {
  if constexpr (requires { &L::decays; }) {
    static_assert(
        requires {
          { L::decays(name, rank) } -> std::same_as<bool>;
        },
        "decays must be static bool decays(std::string_view, std::size_t)");
    return L::decays(name, rank);
  } else {
    return rank >= 2;
  }
}

// Points into the layer: it must outlive this object and must not be moved or reshaped meanwhile.
template <class T>
class FlatParameters {
 public:
  FlatParameters() = default;
  template <Parameterised L>
  explicit FlatParameters(L& layer) : parts_(parameters_of(layer)) {
    offsets_.reserve(parts_.size());
    for (const auto& part : parts_) {
      decays_.push_back(weight_decays<L>(part.name, part.shape.size()));
      offsets_.push_back(size_);
      size_ += part.size;
    }
  }

  Index size() const { return size_; }
  const std::vector<ParameterRef<T>>& parts() const { return parts_; }
  Index offset(std::size_t part) const { return offsets_[part]; }
  bool decays(std::size_t part) const { return decays_[part]; }

  // body(part number, first, last) for the pieces of parts that lie in [begin, end) of the long
  // array; first and last count inside the part.
  template <class Body>
  void for_range(Index begin, Index end, Body&& body) const {
    auto part = static_cast<std::size_t>(std::upper_bound(offsets_.begin(), offsets_.end(), begin) - offsets_.begin());
    for (part = part == 0 ? 0 : part - 1; part < parts_.size() && offsets_[part] < end; ++part) {
      const Index first = std::max<Index>(begin - offsets_[part], 0);
      const Index last = std::min(end - offsets_[part], parts_[part].size);
      if (first < last) body(part, first, last);
    }
  }

  void set_zero() const {
    parallel_for(size_, chunk_size, [this](Index begin, Index end) {
      for_range(begin, end, [this](std::size_t part, Index first, Index last) {
        std::fill(parts_[part].data + first, parts_[part].data + last, T(0));
      });
    });
  }

  // One chunk is small enough for the four arrays of AdamW to share the second-level cache.
  static constexpr Index chunk_size = 16384;

 private:
  std::vector<ParameterRef<T>> parts_;
  std::vector<Index> offsets_;
  std::vector<bool> decays_;
  Index size_ = 0;
};

// Euclidean norm of all elements together, summed in double and in a fixed order.
template <class T>
double global_norm(const FlatParameters<T>& parameters) {
  const double square = parallel_sum(parameters.size(), FlatParameters<T>::chunk_size, [&](Index begin, Index end) {
    constexpr Index width = 32;  // independent sums, so that the compiler may use registers of any length
    double sums[width] = {};
    double rest = 0;
    parameters.for_range(begin, end, [&](std::size_t part, Index first, Index last) {
      const T* RBAR_RESTRICT data = parameters.parts()[part].data;
      Index i = first;
      for (; i + width <= last; i += width)
        for (Index j = 0; j < width; ++j)
          sums[j] += static_cast<double>(data[i + j]) * static_cast<double>(data[i + j]);
      for (; i < last; ++i) rest += static_cast<double>(data[i]) * static_cast<double>(data[i]);
    });
    for (const double sum : sums) rest += sum;
    return rest;
  });
  return std::sqrt(square);
}

// The factor on a gradient of this norm that brings it down to `max_norm` (0: no clipping). The 1e-6
// is PyTorch's clip_grad_norm_.
inline double clip_factor(double norm, double max_norm) {
  return max_norm > 0 ? std::min(1.0, max_norm / (norm + 1e-6)) : 1.0;
}

}  // namespace rbar
