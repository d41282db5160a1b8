import Testing

/// Tests with real guests, one at a time: two guests on two cores disturb each other's ticks and rounds.
@Suite(.serialized) enum RealGuests {}
