import ApusAPI
import Foundation
import Testing

@testable import apus

@Suite("What people read") struct TextTests {
    @Test("a finished move") func completed() {
        var job = Samples.job(.completed)
        job.error = nil
        #expect(
            Text.summary(of: job) == """
                web moved to b in 3.42 s; it paused for 41.2 ms.
                  total time  3.42 s
                  downtime    41.2 ms measured (stop 3.1, last pages 20.0, device state 12.0, start 6.1); \
                QEMU says 38.0 ms; predicted 45.4 ms
                  wire        211 MB in 4 rounds, 61.8 MB/s over the whole
                  pages       zero  203 112 pages, 1.20 MB
                              raw   31 001 pages, 127 MB
                              zstd  28 031 pages, 83.0 MB
                  sent again  2.0 lines of 128 bytes a page, 5.9 % of the pages; hashes 14.2 MB
                  fetched     98 000 pages: 6 000 on demand, 92 000 pushed, whole after 3.20 s
                  faults      420, half of them within 0.3 ms, 99 % within 2.9 ms, longest 8.1 ms; \
                190 ms of waiting in all
                  pushed      9 900 pages used before, 11 800 by trend, 3 100 near touched ones, 67 200 others
                  recorded    10 200 pages in 307 ms; page tables emptied in 31.2 ms, looks 21.9 ms: 16 % of that time
                  in time     95.2 % of the missing pages that it used came before it asked; of those foreseen \
                it used 32 % meanwhile
                  verified    262 144 pages, 0 of them sent again
                  port        direct, 12 hot pages kept for the switch, fence 0.4 ms
                  slowed      to 40 % of its speed, its vCPUs stood still for 0.81 s
                  RAM         pc.ram mapped, 3 blocks stream
                  agent CPU   source 0.42 s, destination 0.51 s
                """)
    }

    @Test("other ends say where the VM runs") func ends() {
        #expect(
            Text.summary(of: Samples.job(.failed))
                == "web was not moved. b said nothing for 5 s. web runs on here.\nLook whether its agent runs.")
        var refused = Samples.job(.failed, full: false)
        refused.error = Problem("peer-unreachable", "b: Connection refused")
        #expect(Text.outcome(of: refused) == "web was not moved. b: Connection refused. web runs on here.")
        #expect(Text.outcome(of: Samples.job(.aborted, full: false)) == "Aborted. web runs on here.")
        #expect(
            Text.outcome(of: Samples.job(.failed, direction: .incoming, full: false))
                == "web was not moved. web stays on b.")
        #expect(Text.outcome(of: Samples.job(.completed, direction: .incoming)) == "web arrived from b.")
        #expect(
            Text.outcome(of: Samples.job(.inDoubt, full: false)) == """
                web is in doubt. It was handed over to b, which has not said that it runs.
                Look there (`apus vm list`), then decide: `apus job resolve j1 --commit` if it is there, --revert if not.
                """)
    }

    @Test("progress in one line that fits") func progress() {
        let job = Samples.job(.transferring, full: false)
        var line = ProgressLine()
        let whole = "web → b  62 %  round 3  118 MB/s  212 MB left  dirty 14.2 MB/s  ready in 2.04 s  pause ~41.3 ms"
        #expect(line.text(job, columns: nil) == whole)
        #expect(line.text(job, columns: 120) == whole)
        #expect(line.text(job, columns: 79) == "web → b  62 %  round 3  118 MB/s  212 MB left  dirty 14.2 MB/s")
        #expect(line.text(job, columns: 10) == "web → b  ")
        for columns in 1...130 { #expect(line.text(job, columns: columns).count < columns || columns == 1) }
    }

    @Test("the percentage never goes back") func monotonic() {
        var line = ProgressLine()
        var job = Samples.job(.transferring, full: false)
        func percent(_ fraction: Double) -> Substring? {
            job.progress.fraction = fraction
            return line.text(job, columns: nil).split(separator: "  ").dropFirst().first
        }
        #expect([0.10, 0.62, 0.40, 0.63, 2].map(percent) == ["10 %", "62 %", "62 %", "63 %", "100 %"])
    }

    @Test(
        "each phase has its words",
        arguments: [
            (JobPhase.preparing, "web → b  preparing"), (.committing, "web → b  62 %  handing over"),
            (.inDoubt, "web → b  in doubt: waiting for the destination"), (.aborted, "web → b  aborted"),
        ])
    func phases(phase: JobPhase, text: String) {
        var line = ProgressLine()
        #expect(line.text(Samples.job(phase, full: false), columns: nil) == text)
    }

    @Test("tables") func tables() {
        #expect(Text.table(of: [MachineSummary]()) == "No VMs.")
        var small = MachineSummary(name: "a-long-name", state: .unresponsive, origin: .adopted, command: [])
        small.memoryBytes = 98312 << 10
        #expect(
            Text.table(of: [Samples.machine, small]) == """
                NAME         STATE         PID   MEMORY    VCPUS  MACHINE     QEMU    JOB
                web          running       4711  1 GiB     2      pc-q35-7.2  7.2.22  j1
                a-long-name  unresponsive  -     96.0 MiB  -      -           -       -
                """)
        #expect(
            Text.table(
                of: [Samples.job(.completed), Samples.job(.transferring, direction: .incoming, full: false)],
                timeZone: .gmt) == """
                    JOB  VM         PEER  PHASE         STARTED              TIME    DOWNTIME
                    j1   web  to    b     completed     2026-11-21 07:30:00  3.42 s  41.2 ms
                    j1   web  from  b     transferring  2026-11-21 07:30:00  2.30 s  -
                    """)
    }

    @Test("one VM") func details() {
        #expect(
            Text.details(of: Samples.machine) == """
                  name     web
                  state    running
                  origin   run
                  pid      4711
                  memory   1 GiB
                  vcpus    2
                  machine  pc-q35-7.2
                  qemu     7.2.22
                  monitor  /run/apus/vms/web/qmp.sock
                  command  qemu-system-x86_64 -append 'it'\\''s quiet' -m 1G
                  job      j1
                  note     Guest RAM stays private.
                """)
    }

    @Test("numbers") func numbers() {
        #expect(
            [0, 999, 1000, 99_949, 999_500, 1_234_567_890].map(Units.bytes) == [
                "0 B", "999 B", "1.00 kB", "99.9 kB", "1.00 MB", "1.23 GB",
            ])
        #expect(
            [0.04, 41.26, 99.94, 420.4, 1500].map(Units.milliseconds) == [
                "0.0 ms", "41.3 ms", "99.9 ms", "420 ms", "1.50 s",
            ])
        #expect(
            [9994, 12_340, 59_949, 59_960, 125_000, 3_725_000].map(Units.duration) == [
                "9.99 s", "12.3 s", "59.9 s", "1 min 00 s", "2 min 05 s", "1 h 02 min",
            ])
        #expect([0, 999, 1000, 1_234_567].map(Units.count) == ["0", "999", "1 000", "1 234 567"])
        #expect(Units.rate(.nan) == "0 B/s" || Units.rate(.nan) == "? B/s")
    }

    @Test("exit codes") func exitCodes() {
        let codes = JobPhase.allCases.map { ExitStatus(Samples.job($0)).rawValue }
        #expect(codes == [3, 3, 3, 3, 5, 3, 0, 1, 4])
    }
}

@Suite("Watching a job") struct WatchTests {
    private func machine(_ phase: JobPhase = .preparing, owns: Bool = true) -> WatchMachine {
        WatchMachine(ownsJob: owns, job: Samples.job(phase, full: false))
    }

    @Test("updates are shown, a final one ends it") func updates() {
        var watch = machine()
        let running = Samples.job(.transferring, full: false)
        #expect(watch.handle(.update(running)) == [.show(running)])
        let done = Samples.job(.completed)
        #expect(watch.handle(.update(done)) == [.finish(done)])
    }

    @Test("Ctrl-C aborts once, then leaves; a mere observer leaves at once") func interrupts() {
        var watch = machine()
        #expect(watch.handle(.interrupt).last == .abort)
        let aborted = Samples.job(.aborted)
        var other = watch
        #expect(watch.handle(.update(aborted)) == [.finish(aborted)])
        #expect(other.handle(.interrupt) == [.leave])
        var observer = machine(owns: false)
        #expect(observer.handle(.interrupt) == [.leave])
    }

    @Test("an agent that goes away is lost, in doubt is told after patience") func doubt() {
        var watch = machine()
        #expect(watch.handle(.ended) == [.lost])
        let doubt = Samples.job(.inDoubt)
        #expect(watch.handle(.update(doubt)) == [.show(doubt)])
        for _ in 1..<WatchMachine.doubtPatienceS { #expect(watch.handle(.tick).isEmpty) }
        #expect(watch.handle(.tick) == [.finish(doubt)])
        #expect(watch.handle(.ended) == [.finish(doubt)])
    }

    @Test("events in any pieces") func eventParser() {
        let text = "data: {\"a\":1}\r\n\r\n: comment\ndata: x\ndata: y\n\nevent: z\n\ndata: open"
        var whole = EventParser()
        let events = whole.feed(text.utf8)
        #expect(events == [Data("{\"a\":1}".utf8), Data("xy".utf8)])
        for cut in 0...text.utf8.count {
            var parser = EventParser()
            let first = parser.feed(Array(text.utf8)[..<cut])
            #expect(first + parser.feed(Array(text.utf8)[cut...]) == events)
        }
    }
}
