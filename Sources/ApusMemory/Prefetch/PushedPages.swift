/// Which pages came to a VM before it asked for them, and what became of them.
///
/// ```
///   pushed       # # # # # # # . . .        came before anybody asked
///   foreseen     # # # # . . . . . .        of these, it was guessed that they would be used soon
///   used         # . # # . # . # # .        by the VM, when nothing is missing any more
///
///   coverage     4 of 6                     used pages that were there in time, of all that were used
///   accuracy     3 of 4                     used, of those foreseen
/// ```
public struct PushedPages: Sendable {
    private var pushed: PageSet
    private var foreseen: PageSet

    public init(pageCount: PageNumber) {
        pushed = PageSet(pageCount: pageCount)
        foreseen = PageSet(pageCount: pageCount)
    }

    /// These pages came by themselves.
    public mutating func came(first: PageNumber, count: Int, isForeseen: Bool) {
        pushed.insert(first: first, count: count)
        if isForeseen { foreseen.insert(first: first, count: count) }
    }

    /// Somebody waited for this one all the same.
    public mutating func wasLate(_ page: PageNumber) { pushed.remove(first: page, count: 1) }

    public func use(_ used: PageSet) -> PushUse {
        var (inTime, rightly) = (pushed, foreseen)
        inTime.formIntersection(used)
        rightly.formIntersection(used)
        return PushUse(usedPages: inTime.count, foreseenPages: foreseen.count, foreseenUsedPages: rightly.count)
    }
}

/// What a VM has used of the pages that came before it asked for them.
public struct PushUse: Codable, Sendable, Equatable {
    /// Used, and there in time.
    public var usedPages: Int
    /// Pushed because it was guessed that they would be used soon, and those of them that were.
    public var foreseenPages: Int
    public var foreseenUsedPages: Int

    public init(usedPages: Int, foreseenPages: Int, foreseenUsedPages: Int) {
        self.usedPages = usedPages
        self.foreseenPages = foreseenPages
        self.foreseenUsedPages = foreseenUsedPages
    }
}
