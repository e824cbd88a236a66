"""How far results may be apart, and why, where several test files ask. A bound of one test alone is derived there."""

# Entries of a unit vector that a float32 engine computes, against float64, with weights that have no outliers. A sum of
# n products is off by about sqrt(n) 2^-24 of its size where errors are random, and products in a row add up like
# independent errors. `small` has 26 in a row (6 layers of 4, and 2 heads) of up to 96 terms: sqrt(26 * 96) 2^-24, 3e-6
# of the vector's length. nano has 18 of up to 768: 7e-6. Either is 4e-7 in each of the 64 or 384 entries, and the worst
# of these has 3 or 4 times that. The full size would have 7e-7, but its sums are kept in 16 parts, or more, which makes
# their errors a quarter.
FLOAT32 = 2e-6

# The cosine of vectors that differ by the rounding of activations to int8. Each product's inputs get noise of 2.2e-5 of
# their power (a Gaussian's in groups of 32, kernels/README.md), and a cosine loses half of what noise there is in all:
# 26 * 1.1e-5, 2.9e-4, for `small`, 2e-4 for nano.
ROUNDED_COSINE = 0.9995

# The cosine of one vector, computed twice: D entries that are off by e cost D e^2 / 2. The largest bound on e that a
# test has is 1e-4; with 768 entries that is 4e-6.
SAME_COSINE = 0.99999
