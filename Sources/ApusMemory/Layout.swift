/// A page of a VM, numbered through all its RAM blocks; 4096 bytes.
public typealias PageNumber = UInt32

/// One RAM block as QEMU names it.
public struct RAMBlock: Equatable, Sendable {
    public let name: String
    public let byteCount: UInt64
    /// Number of the block's first page in the VM.
    public let firstPage: PageNumber
    public var pageCount: PageNumber { PageNumber(byteCount / UInt64(Limits.pageBytes)) }
}

public enum LayoutError: Error, Equatable, Sendable {
    case tooManyBlocks(Int)
    case tooLarge(pages: UInt64)
    case unaligned(block: String, byteCount: UInt64)
    case sameName(String)
    case nameTooLong(Int)
}

/// How a VM's RAM blocks lie in one sequence of page numbers.
///
/// ```
///   block     pc.ram                 pc.bios     pc.rom
///   page      0 ......... 131073 | 131074 ... | ...
/// ```
public struct Layout: Equatable, Sendable {
    public let blocks: [RAMBlock]
    public let pageCount: PageNumber

    public init(_ blocks: [(name: String, byteCount: UInt64)]) throws(LayoutError) {
        guard blocks.count <= Limits.ramBlocks else { throw .tooManyBlocks(blocks.count) }
        var next: UInt64 = 0
        var placed: [RAMBlock] = []
        var names: Set<String> = []
        for (name, byteCount) in blocks {
            guard byteCount % UInt64(Limits.pageBytes) == 0 else {
                throw .unaligned(block: name, byteCount: byteCount)
            }
            guard name.utf8.count < 256 else { throw .nameTooLong(name.utf8.count) }
            guard names.insert(name).inserted else { throw .sameName(name) }
            let pages = byteCount / UInt64(Limits.pageBytes)
            guard pages <= Limits.ramPages, next + pages <= Limits.ramPages else { throw .tooLarge(pages: next) }
            placed.append(RAMBlock(name: name, byteCount: byteCount, firstPage: PageNumber(next)))
            next += pages
        }
        self.blocks = placed
        self.pageCount = PageNumber(next)
    }

    public var byteCount: UInt64 { UInt64(pageCount) * UInt64(Limits.pageBytes) }

    /// The block that holds `page`, by its index; nil outside the VM.
    public func block(of page: PageNumber) -> Int? {
        guard page < pageCount else { return nil }
        var low = 0
        var high = blocks.count - 1
        while low < high {
            let middle = (low + high + 1) / 2
            if blocks[middle].firstPage <= page { low = middle } else { high = middle - 1 }
        }
        return low
    }
}
