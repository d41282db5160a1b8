internal import Foundation

/// A QEMU to compare with, and its version as results name it.
public struct QemuProgram: Sendable, Equatable {
    public let path: String
    /// `7.2`, `10.0`
    public let version: String

    public static let installed = "qemu-system-x86_64"
    /// QEMU 10 as `./dev qemu10` unpacks it; nil when it has not.
    public static var newer: String? {
        let path = "\(labCache())/bin/qemu10-system-x86_64"
        return FileManager.default.isExecutableFile(atPath: path) ? path : nil
    }

    public static func identify(path: String) async throws -> QemuProgram {
        let text = try await command([path, "--version"])
        // QEMU emulator version 7.2.22 (Debian …)
        let number = text.split(separator: " ").first { $0.first?.isNumber == true } ?? "?"
        let parts = number.split(separator: ".")
        return QemuProgram(path: path, version: parts.prefix(2).joined(separator: "."))
    }
}
