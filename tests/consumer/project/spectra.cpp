#include "rbar/sheaf/spectrum.hpp"

#if !defined(RBAR_SPECTRA)
#error "rbar::spectra brings no solver"
#endif

std::vector<double> spectrum_of(const rbar::SparseMatrix& laplacian) { return rbar::smallest_eigenvalues(laplacian); }
