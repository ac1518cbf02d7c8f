// Coboundary and Laplacian of a sheaf graph (Hansen, Ghrist, "Toward a spectral theory of cellular sheaves", 2019).
// With ρ_u(x) = A_u x + b_u and e = (u, v):
//   (δx)_e = A_u x_u − A_v x_v,    c_e = b_u − b_v,    W = diag(w_e I),    L = δᵀ W δ
//   L_uu += w A_uᵀA_u,   L_uv −= w A_uᵀA_v;    xᵀLx = Σ_e E_e without biases, ‖W^½ (δx + c)‖² with them.
// Sparse, in double whatever the graph's scalar.
#pragma once

#include "rbar/sheaf/sheaf_graph.hpp"

#include <Eigen/SparseCore>

#include <vector>

namespace rbar {

using SparseMatrix = Eigen::SparseMatrix<double>;

// What the edges see, one row for each dimension of each edge: residuals are coboundary·x + offset.
struct SheafOperator {
  SparseMatrix coboundary;  // δ [Σ edge dims, state_size]
  Eigen::VectorXd offset;   // c [Σ edge dims]
  Eigen::VectorXd weight;   // diagonal of W [Σ edge dims]
};

template <class T>
SheafOperator sheaf_operator(const SheafGraph<T>& graph) {
  std::vector<Matrix<double>> matrices;
  for (const auto& map : graph.maps) matrices.push_back(map.matrix().template cast<double>());
  Index rows = 0;
  std::vector<Eigen::Triplet<double>> elements;
  std::vector<double> offset, weight;
  const auto add_block = [&](Index node, Index map, double sign) {
    const Matrix<double>& a = matrices[static_cast<std::size_t>(map)];
    for (Index r = 0; r < a.rows(); ++r)
      for (Index c = 0; c < a.cols(); ++c)
        if (a(r, c) != 0)
          elements.emplace_back(static_cast<int>(rows + r), static_cast<int>(graph.state_offset(node) + c),
                                sign * a(r, c));
  };
  const auto bias_of = [&](Index map, Index d) {
    const auto& bias = graph.maps[static_cast<std::size_t>(map)].bias;
    return bias.size() > 0 ? static_cast<double>(bias(d)) : 0.0;
  };
  for (Index e = 0; e < graph.count_edges(); ++e) {
    const SheafEdge& edge = graph.edge(e);
    add_block(edge.u, edge.rho_u, 1);
    add_block(edge.v, edge.rho_v, -1);
    const Index dim = matrices[static_cast<std::size_t>(edge.rho_u)].rows();
    for (Index d = 0; d < dim; ++d) {
      offset.push_back(bias_of(edge.rho_u, d) - bias_of(edge.rho_v, d));
      weight.push_back(static_cast<double>(graph.weight(e)));
    }
    rows += dim;
  }
  SheafOperator result;
  result.coboundary.resize(rows, graph.state_size());
  result.coboundary.setFromTriplets(elements.begin(), elements.end());
  result.offset = Eigen::Map<const Eigen::VectorXd>(offset.data(), rows);
  result.weight = Eigen::Map<const Eigen::VectorXd>(weight.data(), rows);
  return result;
}

// L [state_size, state_size].
inline SparseMatrix sheaf_laplacian(const SheafOperator& op) {
  const SparseMatrix weighted = op.weight.asDiagonal() * op.coboundary;
  return op.coboundary.transpose() * weighted;
}
template <class T>
SparseMatrix sheaf_laplacian(const SheafGraph<T>& graph) {
  return sheaf_laplacian(sheaf_operator(graph));
}

// ‖W^½ (δx + c)‖², the total energy of the graph. Errors: states of another size.
inline double sheaf_energy(const SheafOperator& op, const Eigen::VectorXd& state) {
  require(state.size() == op.coboundary.cols(), "sheaf_energy", "size of the states", op.coboundary.cols(),
          state.size());
  const Eigen::VectorXd r = op.coboundary * state + op.offset;
  return r.dot(op.weight.cwiseProduct(r));
}

// The sheaf of a set of tokens: every state is a token's [in], a pair (i, j) compares ρ_query(h_i) with ρ_key(h_j).
// Without a list of pairs, all j < i.
template <class T>
SheafGraph<T> token_sheaf(Index tokens, const RestrictionMap<T>& rho_query, const RestrictionMap<T>& rho_key,
                          std::vector<SheafEdge> pairs = {}) {
  require(tokens > 0, "token_sheaf", "tokens", "at least 1", tokens);
  if (pairs.empty())
    for (Index i = 0; i < tokens; ++i)
      for (Index j = 0; j < i; ++j) pairs.push_back({i, j});
  for (SheafEdge& pair : pairs) {
    pair.rho_u = 0;
    pair.rho_v = 1;
  }
  std::vector<Index> dims(static_cast<std::size_t>(tokens), rho_query.in());
  return SheafGraph<T>(std::move(dims), {rho_query, rho_key}, std::move(pairs));
}

}  // namespace rbar
