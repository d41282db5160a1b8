internal import ApusSystem

/// Copies of hot pages that QEMU's stream brings in pass after pass. QEMU counts a page as sent once it has written it, so
/// holding one back means keeping it; each time it comes again the copy is replaced, and nothing travels.
///
/// ```
///   page comes            held: its copy is replaced        came in the last pass too, and there is room: held
///                         else: travels
///   zeros come            the copy is dropped, the zeros travel
///   pass ends             what was held and did not come has cooled: leaves
///   the guest is stopped  what comes drops its copy and travels; what is held at the end leaves
/// ```
///
/// A pass is QEMU's way through all of RAM; it ends where page numbers start anew. The first one brings every page,
/// which says nothing about heat.
///
/// How many are held: ``HoldRoom``.
///
/// Memory: four bytes for each page ever held, three bitmaps, and the copies.
public struct HeldPages: ~Copyable, Sendable {
    /// Pages that came while they were held: their former content never travelled.
    public private(set) var absorbedPages = 0
    private var copies: PageBuffer
    private var free: [UInt32]
    /// For a page that is held, its slot.
    private var slots = GrowingMemory()
    private var held: PageSet
    /// What came in this pass, and in the last.
    private var now: PageSet
    private var before: PageSet
    private var leaving: PageSet
    private var heldCount = 0
    /// Pages held, and pages absorbed, when this pass began.
    private var heldBefore = 0
    private var absorbedBefore = 0
    private var limit = 0
    private var isFirstPass = true
    private var isClosed = false
    private var last: PageNumber?
    private var room = HoldRoom()

    /// - Parameter capacity: the most pages ever held; their memory is taken as they come.
    public init(pageCount: PageNumber, capacity: Int = Limits.heldPages) {
        precondition(capacity > 0)
        let capacity = min(capacity, max(Int(pageCount), 1))
        copies = PageBuffer(byteCount: capacity * Limits.pageBytes)
        free = (0..<UInt32(capacity)).reversed()
        held = PageSet(pageCount: pageCount)
        now = held
        before = held
        leaving = held
    }

    public var count: Int { heldCount }
    /// Of these, pages that will probably not come again if the guest is stopped now: what holding adds to the pause.
    public var coldCount: Int { Int((Double(heldCount) * room.coldRate).rounded(.up)) }

    /// True when this page begins a new pass: call ``endPass(pausePages:)`` before anything else.
    @inline(__always)
    public func beginsPass(_ page: PageNumber) -> Bool { !isClosed && last.map { page <= $0 } ?? false }

    /// A page of data. True: it is kept here. False: it has to travel.
    @inline(__always)
    public mutating func take(_ page: PageNumber, _ bytes: RawSpan) -> Bool {
        come(page)
        if held.contains(page) {
            absorbedPages += 1
            if isClosed {
                drop(page)
                return false
            }
        } else {
            guard heldCount < limit, !isClosed, before.contains(page), slots.grow(toHold: (Int(page) + 1) * 4),
                let slot = free.popLast()
            else { return false }
            var entries = slots.mutableBytes
            entries.store(littleEndian: slot, at: Int(page) * 4)
            held.insert(first: page, count: 1)
            heldCount += 1
        }
        copies.write(bytes, at: offset(of: page))
        return true
    }

    /// The page travels in some other way, with newer content than is held.
    @inline(__always)
    public mutating func cancel(_ page: PageNumber) {
        come(page)
        if held.contains(page) {
            absorbedPages += 1
            drop(page)
        }
    }

    @inline(__always)
    private mutating func come(_ page: PageNumber) {
        last = page
        if !isFirstPass { now.insert(first: page, count: 1) }
    }

    /// Decides what leaves, and how much may be held in the pass that begins. Call ``release(_:)`` next.
    ///
    /// - Parameter pausePages: pages that the link carries in the longest allowed pause.
    public mutating func endPass(pausePages: Double) {
        room.measured(again: absorbedPages - absorbedBefore, of: heldBefore)
        absorbedBefore = absorbedPages
        limit = room.pages(pausePages: pausePages)
        last = nil
        isFirstPass = false
        var staying = 0
        for index in 0..<held.wordCount {
            var hot = held[word: index] & now[word: index]
            if hot != 0 && staying + hot.nonzeroBitCount > limit { hot = 0 }
            staying += hot.nonzeroBitCount
            leaving[word: index] = held[word: index] & ~hot
            before[word: index] = now[word: index]
            now[word: index] = 0
        }
        heldBefore = staying
    }

    /// The guest is stopped: what comes travels, and all that is still held leaves with the next ``release(_:)``.
    public mutating func close() {
        isClosed = true
        leaving = held
    }

    /// Gives out what leaves, in the order of page numbers.
    public mutating func release<E: Error>(
        _ travel: (PageNumber, RawSpan) throws(E) -> Void
    ) throws(E) {
        let leaving = self.leaving
        try leaving.forEachStripeRun { (first, count) throws(E) in
            for page in first..<first + PageNumber(count) where held.contains(page) {
                let at = offset(of: page)
                try travel(page, copies.bytes.extracting(at..<at + Limits.pageBytes))
                drop(page)
            }
        }
    }

    @inline(__always)
    private func offset(of page: PageNumber) -> Int {
        Int(slots.bytes.littleEndian(at: Int(page) * 4, as: UInt32.self)) * Limits.pageBytes
    }

    private mutating func drop(_ page: PageNumber) {
        free.append(slots.bytes.littleEndian(at: Int(page) * 4))
        held.remove(first: page, count: 1)
        heldCount -= 1
    }
}
