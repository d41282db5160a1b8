internal import Glibc

/// e to the power of `x`: of all that the C library calculates, the one thing that the data plane needs.
public func exponential(_ x: Double) -> Double { exp(x) }
