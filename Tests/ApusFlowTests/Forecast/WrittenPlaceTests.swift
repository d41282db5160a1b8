import Testing

@testable import ApusFlow

@Suite("written place") struct WrittenPlaceTests {
    private static let data: [WrittenPlace.Run] = [(first: 0, count: 1000), (first: 5000, count: 3000)]

    @Test("pages are placed by the data before them") func ranks() throws {
        let place = try #require(WrittenPlace(of: [(first: 5000, count: 1000)], in: Self.data))
        #expect(place.dataPages == 4000 && place.writtenPages == 1000)
        #expect(abs(place.ranks.lowerBound - 0.25) < 0.01 && abs(place.ranks.upperBound - 0.5) < 0.01)
        let all = try #require(WrittenPlace(of: Self.data, in: Self.data))
        #expect(all.ranks == 0...1)
        // A hole, and nothing.
        #expect(WrittenPlace(of: [(first: 2000, count: 10)], in: Self.data) == nil)
        #expect(WrittenPlace(of: [], in: Self.data) == nil)
    }

    @Test("pages that are larger on the wire than the rest take more of the pass") func span() throws {
        let place = try #require(WrittenPlace(of: [(first: 5000, count: 1000)], in: Self.data))
        let even = place.span(passBytes: 4000 * 100, bytesPerPage: 100)
        #expect(abs(even.lowerBound - 0.25) < 0.01 && abs(even.upperBound - 0.5) < 0.01, "\(even)")
        // A third of the rest lies before them, the rest is a tenth of the bytes.
        let heavy = place.span(passBytes: 1000 * 900 + 3000 * 100.0 / 3, bytesPerPage: 900)
        #expect(abs(heavy.lowerBound - 0.033) < 0.01 && abs(heavy.upperBound - 0.933) < 0.01, "\(heavy)")
        #expect(place.span(passBytes: 0, bytesPerPage: 100) == 0...1)
        let odd = place.span(passBytes: 10, bytesPerPage: 4096)
        #expect(odd == 0...1, "\(odd)")
    }
}
