// y = x W^T, the dense layer's product:
//   `gemm TOKENS OUT IN`         from W as it is trained,
//   `gemm_packed TOKENS OUT IN`  from W laid out once for inference.
// Where oneDNN was found at build time, its product is timed beside ours in this process, on as many OpenMP threads as
// the environment says: dnnl_sgemm, and for a packed W the matmul primitive with W in the layout that it asks for.
#include "row.hpp"

#include "rbar/core/gemm.hpp"
#include "rbar/nn/packed_matrix.hpp"

#if defined(RBAR_PEER_ONEDNN)
#include <dnnl.hpp>
#endif

namespace {

using namespace rbar;

#if defined(RBAR_PEER_ONEDNN)
class PackedOneDnn {
 public:
  PackedOneDnn(const Tensor<float, 2>& x, const Tensor<float, 2>& weight, Tensor<float, 2>& y)
      : x_(source(x), engine_, const_cast<float*>(x.data())), y_(source(y), engine_, y.data()) {
    using dnnl::memory;
    const memory::dims sizes{weight.dimension(1), weight.dimension(0)};
    const auto any = memory::desc(sizes, memory::data_type::f32, memory::format_tag::any);
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::matmul::primitive_desc plan(engine_, source(x), any, source(y));
#else
    const dnnl::matmul::primitive_desc plan(dnnl::matmul::desc(source(x), any, source(y)), engine_);
#endif
    memory as_trained({sizes, memory::data_type::f32, memory::format_tag::ba}, engine_,
                      const_cast<float*>(weight.data()));
    weight_ = memory(plan.weights_desc(), engine_);
    dnnl::reorder(as_trained, weight_).execute(stream_, as_trained, weight_);
    stream_.wait();
    matmul_ = dnnl::matmul(plan);
  }
  void operator()() {
    matmul_.execute(stream_, {{DNNL_ARG_SRC, x_}, {DNNL_ARG_WEIGHTS, weight_}, {DNNL_ARG_DST, y_}});
    stream_.wait();
  }

 private:
  static dnnl::memory::desc source(const Tensor<float, 2>& matrix) {
    return {{matrix.dimension(0), matrix.dimension(1)}, dnnl::memory::data_type::f32, dnnl::memory::format_tag::ab};
  }
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  dnnl::memory x_, y_, weight_;
  dnnl::matmul matmul_;
};
#endif

struct Setting {
  Tensor<float, 2> x, weight, y, peer_y;
};

peers::Row product(std::span<const Index> sizes, bool is_packed) {
  const Index m = sizes[0], n = sizes[1], k = sizes[2];
  const auto s = std::make_shared<Setting>();
  s->x.resize(m, k);
  s->weight.resize(n, k);
  s->y.resize(m, n);
  s->peer_y.resize(m, n);
  peers::fill_normal(s->x, 1);
  peers::fill_normal(s->weight, 2, 0.05);
  peers::Row row;
  row.flops = 2.0 * static_cast<double>(m * n) * static_cast<double>(k);
  if (is_packed) {
    const auto packed = std::make_shared<PackedMatrix<float>>(rows(std::as_const(s->weight)));
    row.run = [=] { packed->product(rows(std::as_const(s->x)), rows(s->y), /*accumulate=*/false); };
  } else {
    row.run = [=] {
      gemm(Transpose::no, Transpose::yes, m, n, k, s->x.data(), k, s->weight.data(), k, s->y.data(), n);
    };
  }
  row.inputs = {peers::numbers("x", s->x), peers::numbers("weight", s->weight)};
  row.outputs = [=] { return std::vector{peers::numbers("y", s->y)}; };
#if defined(RBAR_PEER_ONEDNN)
  const auto difference = [=] {
    const auto ours = rows(s->y), theirs = rows(s->peer_y);
    return double((ours - theirs).cwiseAbs().maxCoeff() / theirs.cwiseAbs().maxCoeff());
  };
  const auto sgemm = [=] {
    const dnnl_status_t status =
        dnnl_sgemm('N', 'T', m, n, k, 1.0f, s->x.data(), k, s->weight.data(), k, 0.0f, s->peer_y.data(), n);
    require(status == dnnl_success, "time_gemm", "dnnl_sgemm", "success", static_cast<int>(status));
  };
  if (is_packed)
    row.peers["oneDNN"] = {[peer = std::make_shared<PackedOneDnn>(s->x, s->weight, s->peer_y)] { (*peer)(); },
                           difference};
  else
    row.peers["oneDNN"] = {sgemm, difference};
#endif
  return row;
}

}  // namespace

int main(int argc, char** argv) {
  return rbar::peers::serve(argc, argv,
                            {{"gemm", [](std::span<const Index> sizes) { return product(sizes, false); }},
                             {"gemm_packed", [](std::span<const Index> sizes) { return product(sizes, true); }}});
}
