internal import Foundation
internal import Glibc

/// One end of a pair: a network namespace, or this machine itself.
public struct Host: Sendable, Equatable {
    /// nil: no namespace of its own.
    public let namespace: String?
    public let device: String
    public let address: String

    /// What to write in front of a command so that it runs on this host. `ip netns exec` becomes the command, so the
    /// process id stays the same.
    public func command(_ words: [String]) -> [String] {
        namespace.map { ["ip", "netns", "exec", $0] + words } ?? words
    }
}

/// Two hosts joined by a wire whose rate and state the experiment decides.
///
/// ```
///   namespace apus<pid>.<n>a                       namespace apus<pid>.<n>b
///   10.77.0.1  wire0 [tbf rate] ====== veth ====== [tbf rate] wire0  10.77.0.2
/// ```
/// A wire with a round trip time is not a veth pair but a ``SlowWire``, between TUN interfaces of the same names.
/// Without root there are no namespaces: both hosts are this machine's loopback, unshaped, told apart by port.
public struct HostPair: Sendable {
    public let source: Host
    public let destination: Host
    /// Bits per second; nil: unshaped.
    public let rate: UInt64?
    /// What the wire adds to the time of a round trip.
    public let rttMs: Double
    public var isNamespaced: Bool { source.namespace != nil }

    public static var canMakeNamespaces: Bool { geteuid() == 0 }

    /// - Throws: `LabError.notEnough` when a round trip is to take time and there are no rights for it.
    public static func make(in lab: Lab, rate: UInt64?, rttMs: Double = 0) async throws -> HostPair {
        guard canMakeNamespaces else {
            guard rttMs == 0 else { throw LabError.notEnough(what: "rights to make a slow wire: not root") }
            let loopback = Host(namespace: nil, device: "lo", address: "127.0.0.1")
            return HostPair(source: loopback, destination: loopback, rate: nil, rttMs: 0)
        }
        let name = "apus\(getpid()).\(lab.number)"
        let pair = HostPair(
            source: Host(namespace: name + "a", device: "wire0", address: "10.77.0.1"),
            destination: Host(namespace: name + "b", device: "wire0", address: "10.77.0.2"), rate: rate,
            rttMs: rttMs)
        for host in [pair.source, pair.destination] {
            let namespace = host.namespace ?? ""
            try await ApusLab.command(["ip", "netns", "add", namespace])
            // The wire's end goes with its namespace.
            lab.later("namespace \(namespace)") { try await ApusLab.command(["ip", "netns", "del", namespace]) }
        }
        if rttMs > 0 {
            let wire = try SlowWire("wire0", spaces: [name + "a", name + "b"], oneWayMs: rttMs / 2)
            lab.later("slow wire") { wire.end() }
        } else {
            try await ApusLab.command([
                "ip", "link", "add", "wire0", "netns", name + "a", "type", "veth", "peer", "name", "wire0", "netns",
                name + "b",
            ])
        }
        for host in [pair.source, pair.destination] {
            try await host.ip(["addr", "add", "\(host.address)/30", "dev", "wire0"])
            try await host.ip(["link", "set", "lo", "up"])
            try await host.ip(["link", "set", "wire0", "up"])
            if let rate { try await host.shape(rate: rate) }
        }
        return pair
    }

    /// Cuts or joins the wire, as pulling the cable at the source's end does.
    public func setLink(up: Bool) async throws {
        guard isNamespaced else { throw LabError.notEnough(what: "rights to change the link: not root") }
        try await source.ip(["link", "set", "wire0", up ? "up" : "down"])
    }

    /// Bytes that have crossed the wire in each direction; nil when the wire is not ours alone.
    public func wireBytes() async throws -> WireBytes? {
        guard isNamespaced else { return nil }
        let text = try await ApusLab.command(
            ["ip", "-n", source.namespace ?? "", "-j", "-s", "link", "show", "dev", source.device])
        guard let device = try JSONDecoder().decode([Device].self, from: Data(text.utf8)).first else { return nil }
        return WireBytes(toDestination: device.stats64.tx.bytes, toSource: device.stats64.rx.bytes)
    }

    /// `ip -j -s link`, as far as it is needed.
    private struct Device: Decodable {
        struct Counter: Decodable { let bytes: UInt64 }
        struct Counters: Decodable { let rx, tx: Counter }
        let stats64: Counters
    }
}

/// Counted by the interface: headers included (one per segment as handed to the device), acknowledgements too.
public struct WireBytes: Sendable, Equatable {
    public var toDestination: UInt64
    public var toSource: UInt64
    public var both: UInt64 { toDestination + toSource }

    public static func - (later: WireBytes, earlier: WireBytes) -> WireBytes {
        WireBytes(
            toDestination: later.toDestination - earlier.toDestination, toSource: later.toSource - earlier.toSource)
    }
}

extension Host {
    /// Runs a command on this host to its end, whatever that is.
    public func attempt(_ words: [String], seconds: Double = 20) async throws -> CommandResult {
        try await ApusLab.attempt(command(words), seconds: seconds)
    }

    func ip(_ words: [String]) async throws {
        try await ApusLab.command(["ip"] + (namespace.map { ["-n", $0] } ?? []) + words)
    }

    /// The bucket holds 4 ms at full rate (one tick of a 250 Hz kernel), never less than one segment of 64 KiB.
    func shape(rate: UInt64) async throws {
        let burst = max(rate / 8 / 250, 65_536 + 1_514)
        try await ApusLab.command(
            ["tc"] + (namespace.map { ["-n", $0] } ?? []) + [
                "qdisc", "replace", "dev", device, "root", "tbf", "rate", "\(rate)bit", "burst", "\(burst)b",
                "latency", "50ms",
            ])
    }
}
