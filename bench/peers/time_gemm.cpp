// `gemm TOKENS OUT IN`: y = x W^T, the dense layer's product. Where oneDNN was found at build time its dnnl_sgemm is
// timed beside ours in this process, on as many OpenMP threads as the environment says.
#include "row.hpp"

#include "rbar/core/gemm.hpp"

#if defined(RBAR_PEER_ONEDNN)
#include <dnnl.h>
#endif

namespace {

using namespace rbar;

peers::Row product(std::span<const Index> sizes) {
  struct Setting {
    Tensor<float, 2> x, weight, y, peer_y;
  };
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
  row.run = [=] { gemm(Transpose::no, Transpose::yes, m, n, k, s->x.data(), k, s->weight.data(), k, s->y.data(), n); };
  row.inputs = {peers::numbers("x", s->x), peers::numbers("weight", s->weight)};
  row.outputs = [=] { return std::vector{peers::numbers("y", s->y)}; };
#if defined(RBAR_PEER_ONEDNN)
  const auto run = [=] {
    const dnnl_status_t status =
        dnnl_sgemm('N', 'T', m, n, k, 1.0f, s->x.data(), k, s->weight.data(), k, 0.0f, s->peer_y.data(), n);
    require(status == dnnl_success, "time_gemm", "dnnl_sgemm", "success", static_cast<int>(status));
  };
  row.peers["oneDNN"] = {run, [=] {
                           const auto ours = rows(s->y), theirs = rows(s->peer_y);
                           return double((ours - theirs).cwiseAbs().maxCoeff() / theirs.cwiseAbs().maxCoeff());
                         }};
#endif
  return row;
}

}  // namespace

int main(int argc, char** argv) { return rbar::peers::serve(argc, argv, {{"gemm", product}}); }
