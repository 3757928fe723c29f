import com.sun.net.httpserver.HttpServer;
import java.io.BufferedOutputStream;
import java.io.DataInputStream;
import java.io.EOFException;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.Executors;

/**
 * An instance for the benches: numbered answers over HTTP, and a nailgun port whose program receives files by scp.
 *
 * <p>{@code BenchInstance --http PORT --role WORD --delay MS [--nailgun PORT --store DIRECTORY]}. As a program of
 * nailgun, {@code main(String[])} with no option is the sink of the scp protocol: files go to DIRECTORY.
 */
public final class BenchInstance {
    private static Path store;

    private BenchInstance() {
    }

    public static void main(String[] words) throws Exception {
        if (words.length == 0) {
            receive(System.in, System.out);
            return;
        }
        int http = 0;
        int nailgun = 0;
        int delay = 0;
        String role = "";
        for (int i = 0; i + 1 < words.length; i += 2) {
            switch (words[i]) {
                case "--http": http = Integer.parseInt(words[i + 1]); break;
                case "--nailgun": nailgun = Integer.parseInt(words[i + 1]); break;
                case "--delay": delay = Integer.parseInt(words[i + 1]); break;
                case "--role": role = words[i + 1]; break;
                case "--store": store = Path.of(words[i + 1]); break;
                default: throw new IllegalArgumentException(words[i]);
            }
        }
        serve(http, role, delay);
        if (nailgun != 0) {
            Nailgun.serve(nailgun);
        }
    }

    /** Answers each request with the role and what was asked for, as bench/role_app.py does. */
    private static void serve(int port, String role, int delay) throws IOException {
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 1024);
        server.setExecutor(Executors.newFixedThreadPool(64));
        server.createContext("/", exchange -> {
            String path = exchange.getRequestURI().getPath().substring(1);
            try {
                Thread.sleep(path.equals("health") ? 0 : delay);
            } catch (InterruptedException error) {
                throw new IOException(error);
            }
            byte[] body = (role + " " + path + "\n").getBytes(StandardCharsets.US_ASCII);
            exchange.getResponseHeaders().set("Connection", "close");
            exchange.sendResponseHeaders(200, body.length);
            try (OutputStream out = exchange.getResponseBody()) {
                out.write(body);
            }
        });
        server.start();
    }

    /** The sink of scp: acknowledges with a zero byte, takes one header line and so many bytes for each file. */
    private static void receive(InputStream in, OutputStream out) throws IOException {
        DataInputStream data = new DataInputStream(in);
        acknowledge(out);
        String header;
        while ((header = line(data)) != null) {
            if (header.startsWith("C")) {
                String[] parts = header.split(" ", 3);
                acknowledge(out);
                Path name = store.resolve(Path.of(parts[2]).getFileName());
                try (OutputStream file = new BufferedOutputStream(Files.newOutputStream(name))) {
                    copy(data, file, Long.parseLong(parts[1]));
                }
                if (data.read() != 0) {
                    throw new IOException("scp says that the file was not whole");
                }
            }
            acknowledge(out);
        }
    }

    private static void copy(DataInputStream in, OutputStream out, long size) throws IOException {
        byte[] block = new byte[65536];
        for (long left = size; left > 0;) {
            int came = in.read(block, 0, (int) Math.min(left, block.length));
            if (came < 0) {
                throw new EOFException(left + " bytes are missing");
            }
            out.write(block, 0, came);
            left -= came;
        }
    }

    private static String line(InputStream in) throws IOException {
        StringBuilder found = new StringBuilder();
        for (int one = in.read(); one >= 0; one = in.read()) {
            if (one == '\n') {
                return found.toString();
            }
            found.append((char) one);
        }
        return null;
    }

    private static void acknowledge(OutputStream out) throws IOException {
        out.write(0);
        out.flush();
    }

    /** Loaded only where a nailgun port is asked for: the rest needs nothing but the JDK. */
    private static final class Nailgun {
        static void serve(int port) throws Exception {
            new com.martiansoftware.nailgun.NGServer(java.net.InetAddress.getByName("127.0.0.1"), port).run();
        }
    }
}
