import ApusAPI
import ApusMemory
import ApusSystem
import Foundation

/// An order in which pages are pushed, for experiments: a line `FIRST COUNT` for each run of pages of the VM's largest RAM block.
enum PushOrderFile {
    static let bytesMax = 16 << 20

    /// - Throws: `Problem` `push-order-invalid`.
    static func read(_ path: String, _ layout: Layout) throws(Problem) -> AccessRecord {
        guard let file = FileHandle(forReadingAtPath: path), let data = try? file.read(upToCount: bytesMax + 1),
            data.count <= bytesMax
        else {
            throw Problem("push-order-invalid", "\(path) cannot be read, or has more than \(bytesMax) bytes.")
        }
        return try parse(String(decoding: data, as: UTF8.self), layout)
    }

    static func parse(_ text: String, _ layout: Layout) throws(Problem) -> AccessRecord {
        guard let block = layout.blocks.max(by: { $0.pageCount < $1.pageCount }) else { return AccessRecord() }
        var runs: [(first: PageNumber, count: Int)] = []
        for line in text.split(separator: "\n") {
            let words = line.split(separator: " ")
            guard words.count == 2, let first = PageNumber(words[0]), let count = PageNumber(words[1]), count > 0,
                first < block.pageCount, count <= block.pageCount - first
            else {
                throw Problem("push-order-invalid", "\"\(line.prefix(40))\" is no run of pages of \(block.name).")
            }
            runs.append((block.firstPage + first, Int(count)))
        }
        return AccessRecord(given: runs)
    }
}
