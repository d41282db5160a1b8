/// Whether references pay: they do while the storage yields pages faster than the link, and most of them are right.
///
/// ```
///              too many refused, or slower than the link
///   open -----------------------------------------------> shut(pages to go) -- pages pass --> open, counts anew
///                                                          twice as long each time, up to a cap
/// ```
///
/// One for each lane and kind of reference; pure, so that a storm is a test.
public struct ReferenceGate: Sendable, Equatable {
    /// Answers that are looked at together.
    static let windowPages = 1024
    /// Of them, what may be refused: a refused page costs a round trip and travels whole in the end.
    static let refusedShareMax = 0.25
    static let shutPagesMin = 16 << 10
    static let shutPagesMax = 1 << 20

    private enum State: Equatable { case open, shut(pagesToGo: Int) }
    private var state = State.open
    private var shutPages = ReferenceGate.shutPagesMin
    private var proved = 0
    private var refused = 0
    private var readMs = 0.0
    /// Times it has shut.
    public private(set) var closures = 0

    public init() {}

    public var isOpen: Bool { state == .open }

    /// Pages were sent in another form.
    public mutating func passed(pages: Int) {
        guard case .shut(let left) = state else { return }
        state = left > pages ? .shut(pagesToGo: left - pages) : .open
    }

    /// Shuts at once: the receiver does not answer.
    public mutating func shut() {
        state = .shut(pagesToGo: shutPages)
        shutPages = min(shutPages * 2, Self.shutPagesMax)
        closures += 1
    }

    /// The receiver has answered.
    /// - Parameters:
    ///   - readMs: how long its storage took for all of them.
    ///   - literalMs: how long the link takes for one page in its other form, as measured.
    public mutating func answered(proved: Int, refused: Int, readMs: Double, literalMs: Double) {
        self.proved += proved
        self.refused += refused
        self.readMs += readMs
        let all = self.proved + self.refused
        // Once so many are wrong, those of the window that are missing cannot make it good.
        let isStorm = Double(self.refused) > Double(max(all, Self.windowPages)) * Self.refusedShareMax
        guard isStorm || all >= Self.windowPages else { return }
        let isSlow = self.readMs > Double(self.proved) * literalMs
        (self.proved, self.refused, self.readMs) = (0, 0, 0)
        if isStorm || isSlow {
            shut()
        } else if isOpen {
            shutPages = Self.shutPagesMin
        }
    }
}
