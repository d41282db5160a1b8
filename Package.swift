// swift-tools-version: 6.2
import PackageDescription

// Imports go one way, from the bottom of this list to its top:
//   system fence -> memory model -> codecs -> wire formats -> fabric -> flow -> control -> executables
// The data plane (down to ApusFlow) depends on nothing but the toolchain and small C libraries.

let strict: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .strictMemorySafety(),
    .treatAllWarnings(as: .error),
    .enableUpcomingFeature("ExistentialAny"),
    .enableUpcomingFeature("InternalImportsByDefault"),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("NonisolatedNonsendingByDefault"),
    .enableExperimentalFeature("Lifetimes"),
]

func module(_ name: String, _ dependencies: [Target.Dependency] = []) -> Target {
    .target(name: name, dependencies: dependencies, swiftSettings: strict)
}
func tests(_ name: String, _ dependencies: [Target.Dependency], resources: [Resource] = []) -> Target {
    .testTarget(name: name, dependencies: dependencies, resources: resources, swiftSettings: strict)
}
func product(_ name: String, _ package: String) -> Target.Dependency { .product(name: name, package: package) }

let package = Package(
    name: "Apus",
    products: [
        .executable(name: "apus", targets: ["apus"])
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-http-types", from: "1.5.1"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
        .package(url: "https://github.com/apple/swift-system", from: "1.8.1"),
        .package(url: "https://github.com/groue/GRDB.swift", from: "7.10.0"),
        .package(url: "https://github.com/HdrHistogram/hdrhistogram-swift", from: "0.2.0"),
        .package(url: "https://github.com/hummingbird-project/hummingbird", from: "2.28.1", traits: []),
        .package(url: "https://github.com/swift-server/async-http-client", from: "1.37.0"),
        .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.13.0"),
        .package(url: "https://github.com/swiftlang/swift-subprocess", from: "1.0.2"),
        .package(url: "https://github.com/jpsim/Yams", from: "6.2.2"),
    ],
    targets: [
        // C: kernel interfaces Swift cannot import, and the system libraries.
        .target(name: "CApus"),
        .systemLibrary(name: "CZstd", pkgConfig: "libzstd", providers: [.apt(["libzstd-dev"])]),
        .systemLibrary(name: "CLZ4", pkgConfig: "liblz4", providers: [.apt(["liblz4-dev"])]),
        .systemLibrary(name: "COpenSSL", pkgConfig: "libcrypto", providers: [.apt(["libssl-dev"])]),
        .systemLibrary(name: "CXXHash", pkgConfig: "libxxhash", providers: [.apt(["libxxhash-dev"])]),

        // The data plane.
        module("ApusSystem", ["CApus", "CZstd", "CLZ4", "CXXHash", "COpenSSL"]),
        module("ApusMemory", ["ApusSystem"]),
        module("ApusCodec", ["ApusSystem", "ApusMemory"]),
        module("ApusContent", ["ApusSystem", "ApusMemory"]),
        module("ApusWire", ["ApusSystem", "ApusMemory", "ApusCodec"]),
        module("ApusFabric", ["ApusSystem", "ApusMemory", "ApusWire"]),
        module(
            "ApusFlow",
            ["ApusSystem", "ApusMemory", "ApusCodec", "ApusContent", "ApusWire", "ApusFabric"]),

        // The control plane.
        module("ApusQMP", ["ApusSystem", product("NIOCore", "swift-nio"), product("NIOPosix", "swift-nio")]),
        module(
            "ApusControl",
            [
                "ApusSystem", "ApusAPI", "ApusMemory", "ApusContent", "ApusWire", "ApusFabric", "ApusFlow", "ApusQMP",
                product("NIOCore", "swift-nio"), product("NIOPosix", "swift-nio"),
                product("Logging", "swift-log"), product("GRDB", "GRDB.swift"),
                product("Hummingbird", "hummingbird"), product("ServiceLifecycle", "swift-service-lifecycle"),
                product("HTTPTypes", "swift-http-types"), product("UnixSignals", "swift-service-lifecycle"),
                product("HummingbirdCore", "hummingbird"), product("Histogram", "hdrhistogram-swift"),
            ]),
        module("ApusAPI"),
        .executableTarget(
            name: "apus",
            dependencies: [
                "ApusSystem", "ApusAPI", "ApusControl",
                product("ArgumentParser", "swift-argument-parser"), product("Logging", "swift-log"),
                product("AsyncHTTPClient", "async-http-client"), product("Yams", "Yams"),
                product("NIOCore", "swift-nio"), product("NIOHTTP1", "swift-nio"),
                product("UnixSignals", "swift-service-lifecycle"),
            ], swiftSettings: strict),

        // Counts allocations in benchmarks.
        .target(name: "CMallocCount"),

        // The laboratory: real guests, real QEMUs, namespaces; used by tests, demo and benchmarks. Not shipped.
        module(
            "ApusLab",
            [
                "ApusSystem", "ApusMemory", "ApusContent", "ApusWire", "ApusFabric", "ApusFlow", "ApusAPI", "ApusQMP",
                product("Subprocess", "swift-subprocess"), product("SystemPackage", "swift-system"),
                product("NIOCore", "swift-nio"), product("NIOPosix", "swift-nio"),
            ]),
        .executableTarget(
            name: "lab",
            dependencies: [
                "ApusLab", "ApusSystem", "ApusMemory", "ApusCodec", "ApusContent", "ApusWire", "ApusFlow",
                "CMallocCount",
                product("ArgumentParser", "swift-argument-parser"),
            ], swiftSettings: strict),

        // Processes that the tests of ApusSystem enter, and that enter others.
        .executableTarget(name: "write-target", path: "Tests/WriteTarget"),
        .executableTarget(name: "restless-tracer", dependencies: ["CApus"], path: "Tests/RestlessTracer"),
        .executableTarget(name: "fenced-in", path: "Tests/FencedIn"),
        tests("ApusSystemTests", ["ApusSystem", "ApusLab", "CApus", "write-target", "restless-tracer"]),
        tests("ApusMemoryTests", ["ApusSystem", "ApusMemory"], resources: [.copy("Traces")]),
        tests("ApusCodecTests", ["ApusSystem", "ApusMemory", "ApusCodec"]),
        tests("ApusContentTests", ["ApusSystem", "ApusMemory", "ApusContent"]),
        tests("ApusWireTests", ["ApusSystem", "ApusMemory", "ApusWire"], resources: [.copy("Fixtures")]),
        tests(
            "ApusFlowTests",
            [
                "ApusSystem", "ApusMemory", "ApusCodec", "ApusContent", "ApusWire", "ApusFabric", "ApusFlow", "ApusLab",
            ]),
        tests(
            "ApusControlTests",
            [
                "ApusSystem", "ApusMemory", "ApusContent", "ApusAPI", "ApusQMP", "ApusControl", "ApusFabric",
                "ApusFlow", "ApusWire",
                product("NIOCore", "swift-nio"), product("NIOPosix", "swift-nio"), product("GRDB", "GRDB.swift"),
                product("Logging", "swift-log"), product("Yams", "Yams"), "apus",
                product("ServiceLifecycle", "swift-service-lifecycle"),
            ], resources: [.copy("QMP/Fixtures")]),
        tests("QemuTests", ["ApusLab", "ApusAPI", "ApusSystem", "ApusWire", "ApusQMP", "fenced-in"]),
        tests("TidyTests", []),
    ]
)
