public enum InjectionError: Error { case later }
public final class WriteTracker: Sendable {
    public struct Area: Sendable, Equatable {
        public var address: UInt64; public var byteCount: UInt64;
        public init(address: UInt64, byteCount: UInt64) { self.address = address; self.byteCount = byteCount }
    }
    public static func attach(pid: Int32, areas: [Area], journal: String) throws(InjectionError) -> WriteTracker {
        throw .later
    }
    public func takeWritten(_ body: (_ area: Int, _ offset: UInt64, _ byteCount: UInt64) -> Void) throws(SystemError) {}
    public func detach() throws(InjectionError) {}
    public static func cleanUp(journal: String) throws(InjectionError) {}
    public static func hostLacks() -> String? { nil }
}
