internal import CApus
internal import Glibc

/// What has been put into another process, told to whoever comes after us.
///
///     apus-injection 1
///     process 4711 839201               pid, start ticks
///     known 23                          userfaultfds that were there before
///     area 7f2a40000000 20000000        address, bytes; hexadecimal
///     sysctl                            vm.unprivileged_userfaultfd is to be 0 again
///     rebase                            a memory file may be there that nothing maps
///     descriptor 41                     ours; missing: perhaps there is one that is not known
///
/// Each state replaces the file as a whole, and is on the disk before the next step is taken.
struct InjectionJournal: Equatable {
    let pid: Int32
    let startTicks: UInt64
    var known: [Int32] = []
    var areas: [WriteTracker.Area] = []
    var opensSysctl = false
    var rebases = false
    var descriptor: Int32?

    private static let title = "apus-injection 1"

    private var text: String {
        var lines = [Self.title, "process \(pid) \(startTicks)"]
        lines += known.map { "known \($0)" }
        lines += areas.map { "area \(String($0.address, radix: 16)) \(String($0.byteCount, radix: 16))" }
        if opensSysctl { lines.append("sysctl") }
        if rebases { lines.append("rebase") }
        if let descriptor { lines.append("descriptor \(descriptor)") }
        return lines.joined(separator: "\n") + "\n"
    }

    private init?(text: String) {
        let lines = text.split(separator: "\n").map { $0.split(separator: " ") }
        guard lines.count >= 2, text.hasPrefix(Self.title + "\n"), lines[1].count == 3, lines[1][0] == "process",
            let pid = Int32(lines[1][1]), let ticks = UInt64(lines[1][2])
        else { return nil }
        self.init(pid: pid, startTicks: ticks)
        for words in lines.dropFirst(2) {
            switch (words[0], words.count) {
            case ("known", 2): if let number = Int32(words[1]) { known.append(number) }
            case ("area", 3):
                if let address = UInt64(words[1], radix: 16), let bytes = UInt64(words[2], radix: 16) {
                    areas.append(.init(address: address, byteCount: bytes))
                }
            case ("sysctl", 1): opensSysctl = true
            case ("rebase", 1): rebases = true
            case ("descriptor", 2): descriptor = Int32(words[1])
            default: return nil
            }
        }
    }

    init(pid: Int32, startTicks: UInt64) {
        self.pid = pid
        self.startTicks = startTicks
    }

    /// nil: there is none.
    static func read(_ path: String) throws(InjectionError) -> InjectionJournal? {
        let text: String
        do throws(SystemError) {
            text = try ProcFile.read(path)
        } catch {
            if error.code == ENOENT { return nil }
            throw .journalFailed(error)
        }
        guard let journal = InjectionJournal(text: text) else { throw .journalUnreadable(path: path) }
        return journal
    }

    /// Writes the first state; an earlier journal is not overwritten.
    func create(_ path: String) throws(InjectionError) { try put(path, replacing: false) }
    func update(_ path: String) throws(InjectionError) { try put(path, replacing: true) }

    static func remove(_ path: String) throws(InjectionError) {
        do throws(SystemError) {
            _ = try retrying("unlink") { unsafe unlink(path) == 0 || errno == ENOENT ? 0 : -1 }
            try syncFolder(of: path)
        } catch {
            throw .journalFailed(error)
        }
    }

    private func put(_ path: String, replacing: Bool) throws(InjectionError) {
        let draft = "\(path).new"
        defer { _ = unsafe unlink(draft) }
        do throws(SystemError) {
            let flags = O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC
            let file = Descriptor(owning: Int32(try retrying("open") { unsafe Int(capus_open(draft, flags, 0o600)) }))
            let bytes = text.utf8.span
            _ = try retrying("write") {
                unsafe bytes.withUnsafeBufferPointer { unsafe write(file.number, $0.baseAddress, $0.count) }
            }
            _ = try retrying("fsync") { Int(fsync(file.number)) }
            // A link, unlike a rename, fails where there is a file already.
            _ = try retrying("link") { Int(replacing ? unsafe rename(draft, path) : unsafe link(draft, path)) }
            try Self.syncFolder(of: path)
        } catch {
            throw error.code == EEXIST ? .journalExists(path: path) : .journalFailed(error)
        }
    }

    private static func syncFolder(of path: String) throws(SystemError) {
        let folder = path.lastIndex(of: "/").map { $0 == path.startIndex ? "/" : String(path[..<$0]) } ?? "."
        let descriptor = try Descriptor.open(folder, .read)
        _ = try retrying("fsync") { Int(fsync(descriptor.number)) }
    }
}
