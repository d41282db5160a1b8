/// An error for people and programs: what happened, and what to do about it.
public struct Problem: Error, Codable, Sendable, Equatable, CustomStringConvertible {
    /// Stable kebab-case identifier, for example `vm-unknown`, `peer-silent`, `machine-type-missing`.
    public var code: String
    /// One sentence with the names and numbers in it.
    public var message: String
    /// What the operator can do.
    public var advice: String?

    public init(_ code: String, _ message: String, advice: String? = nil) {
        self.code = code
        self.message = message
        self.advice = advice
    }
    public var description: String { advice.map { "\(message) \($0)" } ?? message }
}
