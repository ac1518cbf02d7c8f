// One rbar layer inside somebody's own Eigen model. The model: y = h + attention(h) with h = x·A, and the
// answer y·b of the last token; A and b are Eigen matrices that this file trains itself.
//
// The task needs a look back: each sequence is noise with one marked token, and the answer is the noise
// under the mark. Without attention nothing about it reaches the last token.
#include "rbar/attention/multi_head_attention.hpp"
#include "rbar/core/random.hpp"

#include <cstdio>

using rbar::Index;
using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;  // rows are tokens

int main() {
  constexpr Index batch = 64, tokens = 12, features = 16;
  constexpr float rate = 0.05f;

  rbar::Rng rng(1);
  RowMajor a = RowMajor::NullaryExpr(2, features, [&] { return static_cast<float>(rng.normal()); });
  Eigen::VectorXf b = Eigen::VectorXf::NullaryExpr(features, [&] { return static_cast<float>(rng.normal(0, 0.25)); });
  rbar::MultiHeadAttention<float> attention({.d_model = features, .n_heads = 2}, rng);

  auto gradient = rbar::zeros_like(attention);
  rbar::MultiHeadAttention<float>::Cache cache;
  rbar::Tensor<float, 3> attended, dh_attention;
  RowMajor x(batch * tokens, 2), h(batch * tokens, features), dy(batch * tokens, features);
  Eigen::VectorXf answer(batch);

  double first_loss = 0, loss = 0;
  for (int step = 0; step < 400; ++step) {
    // The data: noise in column 0, the mark in column 1.
    for (Index s = 0; s < batch; ++s) {
      const Index marked = s * tokens + static_cast<Index>(rng.below(tokens));
      for (Index t = 0; t < tokens; ++t) x.row(s * tokens + t) << static_cast<float>(rng.normal()), 0.0f;
      x(marked, 1) = 3;
      answer(s) = x(marked, 0);
    }

    // Forward. An Eigen matrix [batch · tokens, features] is viewed as [batch, tokens, features]; no copy.
    h.noalias() = x * a;
    attention.forward(rbar::view(std::as_const(h).data(), batch, tokens, features), attended, cache);
    RowMajor y = h + rbar::rows(attended);

    // Loss ½·mean (y·b − answer)² over the last tokens, and backward.
    dy.setZero();
    Eigen::VectorXf db = Eigen::VectorXf::Zero(features);
    loss = 0;
    for (Index s = 0; s < batch; ++s) {
      const Index last = s * tokens + tokens - 1;
      const float error = y.row(last).dot(b) - answer(s);
      loss += 0.5 * error * error / batch;
      dy.row(last) = error / batch * b.transpose();
      db += error / batch * y.row(last).transpose();
    }
    rbar::set_zero(gradient);
    attention.backward(rbar::view(std::as_const(dy).data(), batch, tokens, features), cache, dh_attention, gradient);
    const RowMajor dh = dy + rbar::rows(dh_attention);

    // Gradient descent: for the layer, over the list of its parameters.
    a -= rate * x.transpose() * dh;
    b -= rate * db;
    const auto weights = rbar::parameters_of(attention), gradients = rbar::parameters_of(gradient);
    for (std::size_t p = 0; p < weights.size(); ++p)
      for (Index i = 0; i < weights[p].size; ++i) weights[p].data[i] -= rate * gradients[p].data[i];

    if (step == 0) first_loss = loss;
    if (step % 100 == 0 || step == 399) std::printf("step %3d  loss %.4f\n", step, loss);
  }
  return loss < 0.2 * first_loss ? 0 : 1;
}
