#pragma once
// The stepwise SHA-256 functions: EVP, which replaces them, allocates for every digest that starts from a common state.
#define OPENSSL_SUPPRESS_DEPRECATED
#include <openssl/sha.h>
