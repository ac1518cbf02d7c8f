// Every layer and model names its parameters once, in `parameters(visit)`:
//   visit("weight", weight); visit_layer(visit, "attention", attention);
// Counting, zeroing, AdamW, saving, loading and gradient checking all follow from that visitor.
// `buffers(visit)` does the same for state that is saved but not trained (thresholds, running
// scales, controllers). A gradient is another object of the same type.
#pragma once

#include "rbar/core/tensor.hpp"

#include <algorithm>
#include <concepts>
#include <string>
#include <vector>

namespace rbar {

// A parameter seen flat: name as in a checkpoint, memory, and the tensor's sizes.
template <class T>
struct ParameterRef {
  std::string name;
  T* data = nullptr;
  Index size = 0;
  std::vector<Index> shape;

  std::span<T> values() const { return {data, static_cast<std::size_t>(size)}; }
};

// Visits the parameters of a part under "prefix.".
template <class Visit, class Layer>
void visit_layer(Visit&& visit, const std::string& prefix, Layer& layer) {
  layer.parameters([&](const std::string& name, auto& tensor) { visit(prefix + "." + name, tensor); });
}
template <class Visit, class Layer>
void visit_buffers(Visit&& visit, const std::string& prefix, Layer& layer) {
  if constexpr (requires { layer.buffers([](const std::string&, auto&) {}); })
    layer.buffers([&](const std::string& name, auto& tensor) { visit(prefix + "." + name, tensor); });
}

namespace detail {
template <class T>
struct CollectParameters {
  std::vector<ParameterRef<T>>* list;
  template <int Rank>
  void operator()(const std::string& name, Tensor<std::remove_const_t<T>, Rank>& tensor) const {
    const auto shape = shape_of(tensor);
    list->push_back({name, tensor.data(), tensor.size(), std::vector<Index>(shape.begin(), shape.end())});
  }
};
}  // namespace detail

template <class Layer>
auto parameters_of(Layer& layer) {
  using Plain = std::remove_const_t<Layer>;
  using T = std::conditional_t<std::is_const_v<Layer>, const typename Plain::Scalar, typename Plain::Scalar>;
  std::vector<ParameterRef<T>> list;
  // The visitor is written once, for mutable layers; a const layer hands out const pointers only.
  const_cast<Plain&>(layer).parameters(detail::CollectParameters<T>{&list});
  return list;
}

// Saved but untrained state; an empty list for a layer that has none.
template <class Layer>
auto buffers_of(Layer& layer) {
  using Plain = std::remove_const_t<Layer>;
  using T = std::conditional_t<std::is_const_v<Layer>, const typename Plain::Scalar, typename Plain::Scalar>;
  std::vector<ParameterRef<T>> list;
  if constexpr (requires(Plain & plain) { plain.buffers(detail::CollectParameters<T>{&list}); })
    const_cast<Plain&>(layer).buffers(detail::CollectParameters<T>{&list});
  return list;
}

template <class Layer>
Index count_parameters(const Layer& layer) {
  Index count = 0;
  for (const auto& parameter : parameters_of(layer)) count += parameter.size;
  return count;
}

template <class Layer>
void set_zero(Layer& layer) {
  for (const auto& parameter : parameters_of(layer))
    std::fill(parameter.data, parameter.data + parameter.size, typename Layer::Scalar(0));
}

// A gradient for `layer`: same type, same shapes, all zero.
template <class Layer>
Layer zeros_like(const Layer& layer) {
  Layer gradient = layer;
  set_zero(gradient);
  return gradient;
}

// Copies parameters and buffers, converting the scalar (a float model into its double twin).
template <class From, class To>
void copy_parameters(const From& from, To& to) {
  const auto copy = [](const auto& source, const auto& target) {
    require(source.size() == target.size(), "copy_parameters", "number of parameters", target.size(), source.size());
    for (std::size_t i = 0; i < source.size(); ++i) {
      require(source[i].name == target[i].name, "copy_parameters", "parameter name", target[i].name, source[i].name);
      require_shape("copy_parameters", source[i].name, source[i].shape, target[i].shape);
      std::transform(source[i].data, source[i].data + source[i].size, target[i].data,
                     [](auto value) { return static_cast<typename To::Scalar>(value); });
    }
  };
  copy(parameters_of(from), parameters_of(to));
  copy(buffers_of(from), buffers_of(to));
}

// Loss terms that a model adds by itself (balance of experts, regularisers), weighted; 0 for most. They lie in the
// cache of a forward pass, and its backward pass includes their gradient.
template <class Cache>
double auxiliary_loss_of(const Cache& cache) {
  if constexpr (requires { cache.auxiliary_loss; })
    return cache.auxiliary_loss;
  else
    return 0;
}

namespace detail {
struct AnyVisitor {
  template <class Tensorial>
  void operator()(const std::string&, Tensorial&) const {}
};
}  // namespace detail

template <class L>
concept Parameterised = requires(L layer) {
  typename L::Scalar;
  layer.parameters(detail::AnyVisitor{});
};

// The contract of a layer [batch, tokens, features] -> [batch, tokens, features].
template <class L>
concept Layer = Parameterised<L> && std::copyable<L> &&
    requires(const L layer, L gradient, ConstTensorView<typename L::Scalar, 3> x, Tensor<typename L::Scalar, 3> y,
             typename L::Cache cache) {
  layer.forward(x, y, cache);
  layer.backward(x, cache, y, gradient);
};

// A layer that can also be fed token by token, with the numbers of `forward`.
template <class L>
concept StreamingLayer = Layer<L> && requires(const L layer, ConstTensorView<typename L::Scalar, 3> x,
                                              Tensor<typename L::Scalar, 3> y, typename L::State state) {
  layer.step(x, y, state);
};

// Whose logits a step of a stream gives: every new token's, or the last one's of each sequence, [batch, 1, vocabulary].
// Of a prompt nothing else is read, and the logits may be a third of a small model's work.
enum class StepLogits { all, last };

// The contract of a language model: tokens [batch, tokens] -> logits [batch, tokens, vocabulary].
template <class M>
concept LanguageModel = Parameterised<M> && std::copyable<M> &&
    requires(const M model, M gradient, ConstTensorView<Token, 2> tokens,
             ConstTensorView<typename M::Scalar, 3> logits_gradient, Tensor<typename M::Scalar, 3> logits,
             typename M::Cache cache, typename M::State state) {
  typename M::Config;
  model.forward(tokens, logits, cache);
  model.backward(logits_gradient, cache, gradient);
  model.step(tokens, logits, state);
  model.step(tokens, logits, state, StepLogits::last);
};

}  // namespace rbar
