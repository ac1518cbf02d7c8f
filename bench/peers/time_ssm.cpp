// `ssm_forward BATCH TOKENS D_MODEL` and `ssm_training ...`: Mamba's block, forward and forward with backward.
// `ssm_double ...` is the training row in double, for the comparison of the numbers alone. Among the outputs is
// `stream`: y of the same tokens fed one by one.
#include "row.hpp"

#include "rbar/nn/ssm.hpp"

namespace {

using namespace rbar;

template <class T>
struct Setting {
  Rng rng{1};
  SelectiveSSM<T> layer, grad;
  Tensor<T, 3> x, dy, y, dx, stream;
  typename SelectiveSSM<T>::Cache cache;

  Setting(Index batch, Index tokens, Index d_model)
      : layer({.d_model = d_model}, rng),
        grad(zeros_like(layer)),
        x(batch, tokens, d_model),
        dy(batch, tokens, d_model) {
    peers::fill_normal(x, 2);
    peers::fill_normal(dy, 3);
  }
  void forward() { layer.forward(x, y, cache); }
  void training() {
    set_zero(grad);
    forward();
    layer.backward(dy, cache, dx, grad);
  }
  void step_by_step() {
    const auto [batch, tokens, d_model] = shape_of(x);
    typename SelectiveSSM<T>::State state;
    Tensor<T, 3> token(batch, Index(1), d_model), out;
    ensure_shape(stream, shape_of(x));
    for (Index t = 0; t < tokens; ++t) {
      for (Index b = 0; b < batch; ++b) std::copy_n(&x(b, t, 0), d_model, &token(b, 0, 0));
      layer.step(token, out, state);
      for (Index b = 0; b < batch; ++b) std::copy_n(&out(b, 0, 0), d_model, &stream(b, t, 0));
    }
  }
};

template <class T>
peers::Row row(std::span<const Index> sizes, bool training) {
  const auto s = std::make_shared<Setting<T>>(sizes[0], sizes[1], sizes[2]);
  peers::Row row;
  // As bench_ssm counts: products of matrices, and 21 a state of the scan forward, 35 more backward.
  const double tokens = static_cast<double>(sizes[0] * sizes[1]), d = static_cast<double>(sizes[2]), inner = 2 * d;
  const double states = 16, rank = static_cast<double>((sizes[2] + 15) / 16);
  const double maps = 2 * inner * (3 * d + 2 * rank + 2 * states), scan = inner * states;
  row.flops = tokens * (training ? 3 * maps + 56 * scan : maps + 21 * scan);
  row.run = [=] { training ? s->training() : s->forward(); };
  row.inputs = {peers::numbers("x", s->x), peers::numbers("dy", s->dy)};
  row.add_parameters(s->layer);
  row.outputs = [=] {
    s->step_by_step();
    std::vector list{peers::numbers("y", s->y), peers::numbers("stream", s->stream)};
    if (!training) return list;
    list.push_back(peers::numbers("dx", s->dx));
    for (const auto& parameter : parameters_of(std::as_const(s->grad)))
      list.push_back({"grad." + parameter.name, std::as_bytes(parameter.values())});
    return list;
  };
  return row;
}

}  // namespace

int main(int argc, char** argv) {
  return rbar::peers::serve(argc, argv,
                            {{"ssm_forward", [](std::span<const Index> sizes) { return row<float>(sizes, false); }},
                             {"ssm_training", [](std::span<const Index> sizes) { return row<float>(sizes, true); }},
                             {"ssm_double", [](std::span<const Index> sizes) { return row<double>(sizes, true); }}});
}
