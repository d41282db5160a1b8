internal import Foundation

/// The wire as a process on it sees it, from /proc: quick enough for a moment in the middle of a migration.
struct WireProbe: Sendable {
    let pid: Int32
    let device: String

    /// Bytes of both directions that the interface has carried, and those that TCP has taken from the process but the
    /// peer has not confirmed: what was written so far, whether or not it has left. nil when the process has gone.
    func handedOver() -> UInt64? {
        guard let interfaces = read("net/dev"), let carried = Self.carried(by: device, in: interfaces),
            let sockets = read("net/tcp")
        else { return nil }
        return carried + Self.unconfirmed(in: sockets)
    }

    private func read(_ name: String) -> String? {
        try? String(contentsOfFile: "/proc/\(pid)/\(name)", encoding: .utf8)
    }

    /// `wire0: RECEIVED packets errors dropped fifo frame compressed multicast SENT packets …`
    static func carried(by device: String, in text: String) -> UInt64? {
        for line in text.split(separator: "\n") {
            let words = line.split { $0 == " " || $0 == ":" }
            guard words.count > 9, words[0] == device, let received = UInt64(words[1]), let sent = UInt64(words[9])
            else { continue }
            return received + sent
        }
        return nil
    }

    /// `0: LOCAL REMOTE STATE SENDING:RECEIVED …`, numbers in hexadecimal, state 01 an open connection.
    static func unconfirmed(in text: String) -> UInt64 {
        text.split(separator: "\n").reduce(0) { sum, line in
            let words = line.split(separator: " ")
            guard words.count > 4, words[3] == "01", let sending = words[4].split(separator: ":").first else {
                return sum
            }
            return sum + (UInt64(sending, radix: 16) ?? 0)
        }
    }
}
